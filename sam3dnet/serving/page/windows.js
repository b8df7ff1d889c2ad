/** Windows {low, high} of grey values: presets, and width and level. */

const CT = [
  { name: "Soft tissue", width: 400, level: 40 },
  { name: "Lung", width: 1500, level: -600 },
  { name: "Bone", width: 1800, level: 400 },
  { name: "Brain", width: 80, level: 40 },
  { name: "Liver", width: 150, level: 30 },
];

/** The window of a width around a level. */
export function fromWidth(width, level) {
  return { low: level - width / 2, high: level + width / 2 };
}

/** The {width, level} of a window. */
export function widthAndLevel({ low, high }) {
  return { width: high - low, level: (low + high) / 2 };
}

/**
 * The presets that make sense for a volume.
 * @returns {{name: string, window: {low: number, high: number}}[]}
 */
export function presetsOf(volume) {
  const automatic = { name: "Automatic", window: volume.percentiles() };
  const full = { name: "Full range", window: { low: volume.meta.range[0], high: volume.meta.range[1] } };
  if (!volume.meta.is_ct) return [automatic, full];
  return [...CT.map(({ name, width, level }) => ({ name, window: fromWidth(width, level) })), automatic, full];
}

/** The window after a drag of (dx, dy) CSS pixels: rightwards is wider, upwards is brighter. */
export function dragged(window, dx, dy) {
  const { width, level } = widthAndLevel(window);
  const perPixel = width / 300;
  return fromWidth(Math.max(width + dx * perPixel, width / 20, 1e-3), level + dy * perPixel);
}
