/** Scribbling: the voxels along a pencil's way, each once, in the order in which they were drawn. */

/** A stroke in one slice of a plane. */
export class Pencil {
  /** The voxels [i, j, k] so far. */
  places = [];
  #seen = new Set();
  #plane;
  #slice;
  #last = null;

  /**
   * @param {Plane} plane
   * @param {number} slice
   */
  constructor(plane, slice) {
    this.#plane = plane;
    this.#slice = slice;
  }

  /** Draw a straight line to a column and row, with fractions; what lies outside of the slice is left out. */
  to(end) {
    const start = this.#last ?? end;
    const steps = Math.max(1, Math.ceil(Math.max(...end.map((to, axis) => Math.abs(to - start[axis])))));
    for (let n = 1; n <= steps; n++) {
      this.#add(...start.map((from, axis) => Math.floor(from + ((end[axis] - from) * n) / steps)));
    }
    this.#last = end;
  }

  #add(column, row) {
    const { width, height } = this.#plane;
    const number = row * width + column;
    if (column < 0 || row < 0 || column >= width || row >= height || this.#seen.has(number)) return;
    this.#seen.add(number);
    this.places.push(this.#plane.voxel(column, row, this.#slice));
  }
}
