/** The label map, the colours of its classes, and its slices as pixels and outlines. */

const COLOURS = [
  [255, 92, 87], [87, 187, 255], [120, 220, 110], [255, 196, 70], [205, 130, 255], [64, 224, 208], [255, 140, 200],
  [255, 150, 66], [160, 170, 255], [190, 220, 60], [220, 170, 130], [130, 210, 170],
];
const GOLDEN = 137.5;

function byHue(hue) {
  const part = (n) => {
    const x = (n + hue / 30) % 12;
    return Math.round(255 * (0.65 - 0.35 * Math.max(-1, Math.min(x - 3, 9 - x, 1))));
  };
  return [part(0), part(8), part(4)];
}

/** The colour [red, green, blue] (0..255) of the n-th class, from 0. */
export function colour(index) {
  return COLOURS[index] ?? byHue((index * GOLDEN) % 360);
}

/** The colour of the n-th class as CSS writes it. */
export function cssColour(index) {
  return `rgb(${colour(index).join(" ")})`;
}

/** The label of each voxel, changed in place. Boxes are [[k0, k1], [j0, j1], [i0, i1]], half-open. */
export class LabelMap {
  /** @param {{meta: object, data: TypedArray}} answer as the server sends it. */
  constructor({ meta, data }) {
    this.data = data;
    this.size = [...meta.shape].reverse();
  }

  /** The label of voxel [i, j, k]. */
  at([i, j, k]) {
    return this.data[(k * this.size[1] + j) * this.size[0] + i];
  }

  /** Put a box of label values in place. */
  put(box, values) {
    this.#rows(box, (to, from, count) => this.data.set(values.subarray(from, from + count), to));
  }

  /** Give a label to those voxels of a box where the mask is 1. */
  paint(box, mask, label) {
    this.#rows(box, (to, from, count) => {
      for (let n = 0; n < count; n++) if (mask[from + n]) this.data[to + n] = label;
    });
  }

  #rows([[k0, k1], [j0, j1], [i0, i1]], call) {
    const [I, J] = this.size;
    const count = i1 - i0;
    for (let k = k0, from = 0; k < k1; k++) {
      for (let j = j0; j < j1; j++, from += count) call((k * J + j) * I + i0, from, count);
    }
  }
}

/** One slice of a label map, drawn. */
export class LabelSlice {
  #labels = new Uint16Array(0);

  /** Copy a slice of a plane, row by row, and note the rows and columns that hold a label. */
  read(map, plane, slice) {
    const { width, height, stepRight, stepDown } = plane;
    if (this.#labels.length !== width * height) this.#labels = new Uint16Array(width * height);
    this.width = width;
    this.height = height;
    const labels = this.#labels, { data } = map, start = plane.start(slice);
    let top = height, bottom = -1, left = width, right = -1;
    for (let row = 0, n = 0; row < height; row++) {
      let at = start + row * stepDown;
      for (let column = 0; column < width; column++, at += stepRight) {
        const label = (labels[n++] = data[at]);
        if (label === 0) continue;
        if (row < top) top = row;
        bottom = row;
        if (column < left) left = column;
        if (column > right) right = column;
      }
    }
    this.extent = bottom < 0 ? null : { top, bottom, left, right };
  }

  /** Write the slice as pixels; `pixels` has one for each label, 0 where nothing is drawn. */
  draw(pixels, out) {
    const labels = this.#labels;
    for (let n = 0; n < labels.length; n++) out[n] = pixels[labels[n]];
  }

  /**
   * The outlines of the labels for which `pixels` is not 0, along the edges of voxels.
   * @returns {Map<number, Path2D>} by label, in columns and rows.
   */
  outlines(pixels) {
    const paths = new Map();
    if (!this.extent) return paths;
    const { top, bottom, left, right } = this.extent;
    const add = (label, x0, y0, x1, y1) => {
      if (!pixels[label]) return;
      let path = paths.get(label);
      if (!path) paths.set(label, (path = new Path2D()));
      path.moveTo(x0, y0);
      path.lineTo(x1, y1);
    };
    this.#edges(top, bottom + 1, left, right, this.height, this.width, 1, (line, from, to, label) =>
      add(label, from, line, to, line));
    this.#edges(left, right + 1, top, bottom, this.width, 1, this.width, (line, from, to, label) =>
      add(label, line, from, line, to));
    return paths;
  }

  // Walk along each line between two rows (or columns) of voxels and tell the runs with two different labels.
  #edges(first, last, from, to, lines, across, along, tell) {
    const labels = this.#labels;
    for (let line = first; line <= last; line++) {
      let begun = from, before = 0, after = 0;
      for (let n = from; n <= to + 1; n++) {
        const at = line * across + n * along;
        const one = n <= to && line > 0 ? labels[at - across] : 0;
        const two = n <= to && line < lines ? labels[at] : 0;
        if (one === before && two === after) continue;
        if (before !== after) {
          if (before) tell(line, begun, n, before);
          if (after) tell(line, begun, n, after);
        }
        begun = n;
        before = one;
        after = two;
      }
    }
  }
}
