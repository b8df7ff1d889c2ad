/**
 * The three planes along the file's axes, turned as radiologists look at them.
 *
 * `axes` has a letter for each of i, j, k: the side of the body to which that index increases. A plane is defined by
 * the sides at the right and at the bottom of the screen; the index with either letter of that pair runs along that
 * screen axis, backwards if its letter is the opposite one. What remains is the index across the slices.
 */

const OPPOSITE = { L: "R", R: "L", A: "P", P: "A", S: "I", I: "S" };
const DEFINITIONS = {
  axial: { right: "L", down: "P", onward: "I" },
  coronal: { right: "L", down: "I", onward: "P" },
  sagittal: { right: "P", down: "I", onward: "L" },
};

/** The names of the planes, in the order in which they are shown. */
export const PLANE_NAMES = Object.keys(DEFINITIONS);

function axisAlong(axes, side) {
  return [0, 1, 2].find((axis) => axes[axis] === side || axes[axis] === OPPOSITE[side]);
}

/** One plane of a volume: which index runs where on the screen. Columns and rows are counted from the top left. */
export class Plane {
  /**
   * @param {string} name "axial", "coronal" or "sagittal".
   * @param {number[]} size voxels along i, j, k.
   * @param {number[]} spacing mm along i, j, k.
   * @param {string} axes the sides to which i, j, k increase, such as "LPS".
   */
  constructor(name, size, spacing, axes) {
    const { right, down, onward } = DEFINITIONS[name];
    this.name = name;
    this.across = axisAlong(axes, right);
    this.along = axisAlong(axes, down);
    this.depth = 3 - this.across - this.along;
    this.mirrored = axes[this.across] !== right;
    this.upturned = axes[this.along] !== down;
    /** +1 or -1: the step of the depth index towards the feet, the back or the left. */
    this.onward = axes[this.depth] === onward ? 1 : -1;
    this.width = size[this.across];
    this.height = size[this.along];
    this.slices = size[this.depth];
    /** mm of a column and of a row. */
    this.pixel = [spacing[this.across], spacing[this.along]];
    this.thickness = spacing[this.depth];
    this.letters = this.#letters(axes);
    this.#strides(size);
  }

  #letters(axes) {
    const x = axes[this.across], y = axes[this.along];
    const [right, bottom] = [this.mirrored ? OPPOSITE[x] : x, this.upturned ? OPPOSITE[y] : y];
    return { left: OPPOSITE[right], right, top: OPPOSITE[bottom], bottom };
  }

  #strides(size) {
    const strides = [1, size[0], size[0] * size[1]];
    this.stepRight = this.mirrored ? -strides[this.across] : strides[this.across];
    this.stepDown = this.upturned ? -strides[this.along] : strides[this.along];
    this.stepDepth = strides[this.depth];
    this.origin =
      (this.mirrored ? (this.width - 1) * strides[this.across] : 0) +
      (this.upturned ? (this.height - 1) * strides[this.along] : 0);
  }

  /** The index into the volume of the top left voxel of a slice. */
  start(slice) {
    return this.origin + slice * this.stepDepth;
  }

  /** The voxel [i, j, k] at a column and row of a slice, of whole numbers. */
  voxel(column, row, slice) {
    const at = [0, 0, 0];
    at[this.across] = this.mirrored ? this.width - 1 - column : column;
    at[this.along] = this.upturned ? this.height - 1 - row : row;
    at[this.depth] = slice;
    return at;
  }

  /** The column of a voxel [i, j, k]. */
  column(at) {
    return this.mirrored ? this.width - 1 - at[this.across] : at[this.across];
  }

  /** The row of a voxel [i, j, k]. */
  row(at) {
    return this.upturned ? this.height - 1 - at[this.along] : at[this.along];
  }
}
