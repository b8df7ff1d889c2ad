/** Painting: the voxels that a round brush touches from pressing the button to letting go. */

const MARGIN = 12; // voxels; the mask grows in steps, not at every move

/** One stroke. It is seen in the label map at once; `finish` tells what to send. */
export class Stroke {
  #map;
  #low = null;
  #high = null;
  #mask = null;
  #painted = null;

  /**
   * @param {LabelMap} map
   * @param {number} label 0 erases.
   * @param {Set<number>} kept labels that stay as they are (those of hidden classes).
   */
  constructor(map, label, kept) {
    this.#map = map;
    this.label = label;
    this.kept = kept;
  }

  /**
   * Paint an ellipsoid of voxels.
   * @param {number[]} centre along i, j, k; whole numbers are the centres of voxels.
   * @param {number[]} radii in voxels along i, j, k; 0 keeps to the voxel of the centre.
   * @returns {number[][]} the box [[k0, k1], [j0, j1], [i0, i1]] that it may have changed.
   */
  stamp(centre, radii) {
    const { size, data } = this.#map;
    const nearest = centre.map(Math.round);
    const low = centre.map((c, axis) => Math.max(0, Math.min(nearest[axis], Math.ceil(c - radii[axis]))));
    const high = centre.map((c, axis) =>
      Math.min(size[axis], Math.max(nearest[axis], Math.floor(c + radii[axis])) + 1));
    if (low.some((from, axis) => from >= high[axis])) return null;
    this.#grow(low, high);
    const share = (value, axis) => (radii[axis] ? ((value - centre[axis]) / radii[axis]) ** 2 : 0);
    const [wide, tall] = [this.#high[0] - this.#low[0], this.#high[1] - this.#low[1]];
    for (let k = low[2]; k < high[2]; k++) {
      for (let j = low[1]; j < high[1]; j++) {
        const rest = share(k, 2) + share(j, 1);
        for (let i = low[0]; i < high[0]; i++) {
          const middle = i === nearest[0] && j === nearest[1] && k === nearest[2];
          if (rest + share(i, 0) > 1 && !middle) continue;
          const at = (k * size[1] + j) * size[0] + i;
          if (this.kept.has(data[at])) continue;
          this.#mask[((k - this.#low[2]) * tall + (j - this.#low[1])) * wide + (i - this.#low[0])] = 1;
          data[at] = this.label;
          this.#note(i, j, k);
        }
      }
    }
    return [2, 1, 0].map((axis) => [low[axis], high[axis]]);
  }

  #note(i, j, k) {
    const p = (this.#painted ??= { low: [i, j, k], high: [i + 1, j + 1, k + 1] });
    if (i < p.low[0]) p.low[0] = i;
    if (j < p.low[1]) p.low[1] = j;
    if (k < p.low[2]) p.low[2] = k;
    if (i >= p.high[0]) p.high[0] = i + 1;
    if (j >= p.high[1]) p.high[1] = j + 1;
    if (k >= p.high[2]) p.high[2] = k + 1;
  }

  #grow(low, high) {
    const inside = (from, a) => from >= this.#low[a] && high[a] <= this.#high[a];
    if (this.#mask && low.every(inside)) return;
    const { size } = this.#map;
    const margin = (axis) => (high[axis] - low[axis] > 1 ? MARGIN : 0);
    const newLow = low.map((from, a) => Math.max(0, Math.min(from - margin(a), this.#low?.[a] ?? from)));
    const newHigh = high.map((to, a) => Math.min(size[a], Math.max(to + margin(a), this.#high?.[a] ?? to)));
    const mask = new Uint8Array(newLow.reduce((count, from, a) => count * (newHigh[a] - from), 1));
    if (this.#mask) copyBox(this.#mask, this.#low, this.#high, mask, newLow, newHigh, this.#low, this.#high);
    this.#low = newLow;
    this.#high = newHigh;
    this.#mask = mask;
  }

  /** Paint all of it once more, over labels that came from the server meanwhile. */
  repaint(map) {
    this.#map = map;
    const done = this.finish();
    if (done) map.paint(done.box, done.mask, done.label);
  }

  /** What was painted, {label, box, mask} with box as above, or null. */
  finish() {
    if (!this.#painted) return null;
    const { low, high } = this.#painted;
    const mask = new Uint8Array(low.reduce((count, from, a) => count * (high[a] - from), 1));
    copyBox(this.#mask, this.#low, this.#high, mask, low, high, low, high);
    return { label: this.label, box: [2, 1, 0].map((axis) => [low[axis], high[axis]]), mask };
  }
}

// Copy the part from `low` to `high` of one box into another one; all are given along i, j, k.
function copyBox(from, fromLow, fromHigh, to, toLow, toHigh, low, high) {
  const index = (i, j, k, l, h) => ((k - l[2]) * (h[1] - l[1]) + (j - l[1])) * (h[0] - l[0]) + (i - l[0]);
  for (let k = low[2]; k < high[2]; k++) {
    for (let j = low[1]; j < high[1]; j++) {
      const at = index(low[0], j, k, fromLow, fromHigh);
      to.set(from.subarray(at, at + high[0] - low[0]), index(low[0], j, k, toLow, toHigh));
    }
  }
}
