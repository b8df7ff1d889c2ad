/** The grey image: its voxels, their place, and how grey values become grey levels. */

const GREYS = new Uint32Array(256).map((_, level) => 0xff000000 | (level << 16) | (level << 8) | level);
const SAMPLES = 200000;

/** One channel of the image. */
export class Volume {
  /** @param {{meta: object, data: TypedArray}} answer as the server sends it; its shape is [k, j, i]. */
  constructor({ meta, data }) {
    this.data = data;
    this.meta = meta;
    /** Voxels along i, j, k. */
    this.size = [...meta.shape].reverse();
    /** mm along i, j, k. */
    this.spacing = meta.spacing;
    this.axes = meta.axes;
    this.whole = !(data instanceof Float32Array);
  }

  /** The grey value of voxel [i, j, k]. */
  at([i, j, k]) {
    return this.data[(k * this.size[1] + j) * this.size[0] + i];
  }

  /** Whether [i, j, k] is a voxel of the image. */
  holds(at) {
    return at.every((index, axis) => index >= 0 && index < this.size[axis]);
  }

  /** A window {low, high} that leaves out the darkest and brightest half percent. */
  percentiles() {
    const step = Math.max(1, Math.floor(this.data.length / SAMPLES));
    const sample = new Float32Array(Math.floor((this.data.length - 1) / step) + 1);
    for (let n = 0; n < sample.length; n++) sample[n] = this.data[n * step];
    sample.sort();
    const low = sample[Math.floor(0.005 * (sample.length - 1))];
    const high = sample[Math.ceil(0.995 * (sample.length - 1))];
    return high > low ? { low, high } : { low: this.meta.range[0], high: this.meta.range[1] };
  }
}

function levelOf(value, low, scale) {
  const level = (value - low) * scale;
  return level <= 0 ? 0 : level >= 255 ? 255 : level | 0;
}

/** A table from grey values to pixels for 8 and 16 bit voxels (looked up by the value's lowest 16 bits). */
export class GreyTable {
  #pixels = new Uint32Array(65536);

  /** Fill the table for a window {low, high} in grey values. */
  update(volume, { low, high }) {
    this.low = low;
    this.scale = 255 / Math.max(high - low, 1e-6);
    if (!volume.whole) return;
    const first = volume.data instanceof Int16Array ? -32768 : 0;
    for (let n = 0; n < 65536; n++) {
      this.#pixels[(first + n) & 0xffff] = GREYS[levelOf(first + n, low, this.scale)];
    }
  }

  /** Write a slice of a plane as pixels, row by row. */
  draw(volume, plane, slice, out) {
    const { data } = volume;
    const { width, height, stepRight, stepDown } = plane;
    const start = plane.start(slice);
    const pixels = this.#pixels;
    for (let row = 0, n = 0; row < height; row++) {
      let at = start + row * stepDown;
      if (volume.whole) {
        for (let column = 0; column < width; column++, at += stepRight) out[n++] = pixels[data[at] & 0xffff];
      } else {
        for (let column = 0; column < width; column++, at += stepRight) {
          out[n++] = GREYS[levelOf(data[at], this.low, this.scale)];
        }
      }
    }
  }
}
