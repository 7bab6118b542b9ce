// What has been loaded, from a kernel or from the page itself; the oldest goes when there is too much.

class Store {
  constructor(source, budget = 400e6) {
    this.source = source; // request(kind, {frame, network, ...}) -> Promise of {header, bytes}
    this.budget = budget; // bytes kept
    this.kept = new Map(); // key -> {promise, value, bytes}, the least recently used first
    this.shown = null; // the scene on the screen, which stays
  }

  scene(frame) { return this.get(`scene/${frame}`, "scene", { frame }, sceneOf); }
  features(frame, network) { return this.get(`features/${frame}/${network}`, "features", { frame, network }, featuresOf); }
  peekScene(frame) { return this.kept.get(`scene/${frame}`)?.value; }
  peekFeatures(frame, network) { return this.kept.get(`features/${frame}/${network}`)?.value; }

  get(key, kind, what, build) {
    const entry = this.kept.get(key) ?? this.request(key, kind, what, build);
    this.kept.delete(key);
    this.kept.set(key, entry);
    return entry.promise;
  }

  request(key, kind, what, build) {
    const entry = { bytes: 0, value: undefined };
    entry.promise = this.source.request(kind, what).then(async ({ header, bytes }) => {
      entry.value = await build(header, unpack(header, bytes));
      entry.bytes = bytes.byteLength + bitmapsOf(entry.value).reduce((sum, { width, height }) => sum + 4 * width * height, 0);
      this.trim();
      return entry.value;
    });
    entry.promise.catch(() => this.kept.delete(key)); // so that it can be asked for again
    return entry;
  }

  trim() {
    let total = 0;
    for (const entry of this.kept.values()) total += entry.bytes;
    for (const [key, entry] of [...this.kept].slice(0, -4)) { // the last four are a frame and its networks
      if (total <= this.budget) return;
      if (entry.value === this.shown || !entry.bytes) continue;
      total -= entry.bytes;
      this.drop(key);
    }
  }

  drop(key) {
    bitmapsOf(this.kept.get(key).value).forEach((bitmap) => bitmap.close());
    this.kept.delete(key);
  }

  close() {
    for (const key of [...this.kept.keys()]) this.drop(key);
    this.source.close();
  }
}

function bitmapsOf(value) {
  return value?.cameras?.map(({ bitmap }) => bitmap) ?? [];
}

async function sceneOf(header, arrays) {
  const cameras = await Promise.all(header.cameras.map(async (camera, c) => ({
    ...camera,
    bitmap: await createImageBitmap(new Blob([arrays[`image${c}`]], { type: camera.type })),
    seen: arrays[`seen${c}`], uv: arrays[`uv${c}`], depth: arrays[`depth${c}`], superpixels: arrays[`superpixels${c}`],
  })));
  return { ...header, ...arrays, cameras, count: arrays.points.length / 3, raw: header.count };
}

function featuresOf(header, arrays) {
  const grids = header.grids.map(([h, w], c) => ({
    h, w, features: arrays[`pixels${c}`], scales: arrays[`pixel_scale${c}`], pca: arrays[`pixel_pca${c}`],
  }));
  return {
    ...header, grids, features: arrays.points, scales: arrays.point_scale, pca: arrays.pca,
    superpoints: { features: arrays.superpoints, scales: arrays.superpoint_scale },
    superpixels: { features: arrays.superpixels, scales: arrays.superpixel_scale },
  };
}

// --- where packs come from ---

function kernelSource(model) {
  // every question carries a number, the kernel answers with the same one: a header or an error, and the bytes
  const waiting = new Map();
  const mine = Math.random().toString(36).slice(2);
  let count = 0;
  const answer = (message, buffers) => {
    const asked = waiting.get(message.id);
    if (!asked) return;
    waiting.delete(message.id);
    if (message.error) return asked.reject(new Error(message.error));
    const view = buffers[0];
    asked.resolve({ header: message.header, bytes: new Uint8Array(view.buffer ?? view, view.byteOffset ?? 0, view.byteLength) });
  };
  model.on("msg:custom", answer);
  return {
    request: (kind, what) => new Promise((resolve, reject) => {
      const id = `${mine}/${++count}`;
      waiting.set(id, { resolve, reject });
      model.send({ id, kind, ...what });
    }),
    close: () => model.off("msg:custom", answer),
    waits: "Waiting for the kernel: it is busy, or gone (then run the cell again).",
  };
}

function pageSource(headers) {
  return {
    request: async (kind, { frame, network }) => {
      const key = kind === "scene" ? `scene/${frame}` : `features/${frame}/${network}`;
      if (!(key in headers)) throw new Error("This page was saved without it: save the explorer again from the notebook.");
      return { header: headers[key], bytes: fromBase64(document.getElementById(key).textContent) };
    },
    close: () => {},
    waits: "Loading.",
  };
}

function pageModel(state) {
  // as much of a widget's model as the explorer uses, without a kernel
  const listeners = new Map();
  return {
    get: (name) => state[name],
    set(name, value) {
      if (state[name] === value) return;
      state[name] = value;
      for (const listener of listeners.get(`change:${name}`) ?? []) listener();
    },
    save_changes() {},
    on: (event, listener) => listeners.set(event, [...(listeners.get(event) ?? []), listener]),
    off: (event, listener) => listeners.set(event, (listeners.get(event) ?? []).filter((other) => other !== listener)),
  };
}
