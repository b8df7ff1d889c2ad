/** What the page knows, and who wants to hear of changes to it. */

/** The values of the page and their watchers. */
export class Store {
  #watchers = [];

  /** @param {object} first the values at the beginning; every key the page ever uses. */
  constructor(first) {
    this.now = first;
  }

  /** Change values; watchers of a key whose value is another one now are called once. */
  set(changes) {
    const keys = Object.keys(changes).filter((key) => !Object.is(this.now[key], changes[key]));
    Object.assign(this.now, changes);
    this.touch(...keys);
  }

  /** Call the watchers of these keys, for values that were changed in place. */
  touch(...keys) {
    if (!keys.length) return;
    for (const { watched, call } of this.#watchers) {
      if (watched.some((key) => keys.includes(key))) call(this.now, keys);
    }
  }

  /** Call `call(now, keys)` after each change of one of the keys, and once at once. */
  watch(watched, call) {
    this.#watchers.push({ watched, call });
    call(this.now, watched);
  }
}
