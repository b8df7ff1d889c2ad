/** Voxels [i, j, k]: the box between two, and many of them without repetition. */

/** The box {low, high} between two opposite corners, both in it. */
export function between(one, other) {
  return { low: one.map((n, axis) => Math.min(n, other[axis])), high: one.map((n, axis) => Math.max(n, other[axis])) };
}

/** These voxels with others after them, each once. */
export function joined(voxels, ...others) {
  return [...new Map([...voxels, ...others].map((at) => [at.join(), at])).values()];
}
