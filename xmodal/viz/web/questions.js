// Questions and answers: from a place that was clicked to its direction, from a direction to similarities.
// An origin is such a place: {frame, kind: "pixel", camera, u, v} or {frame, kind: "point", point} (its row; and its index among those sent, where known), and regions: true | false.

class Questions {
  constructor(store, source, { news, fault }) {
    Object.assign(this, { store, source, news, fault });
    this.directions = new Map(); // of pinned origins, by network: they outlive the frames they came from
    this.told = new Map(); // answers of the kernel
    this.busy = false; // one question to the kernel at a time; of those that wait the newest is asked
  }

  placed(origin) {
    // the origin with the index of its point among those that were sent; null if it is not among them
    if (origin.kind === "pixel" || origin.index !== undefined) return origin;
    const scene = this.store.peekScene(origin.frame);
    const index = scene?.rows ? scene.rows.indexOf(origin.point) : origin.point;
    return scene && index >= 0 && index < scene.count ? { ...origin, index } : null;
  }

  direction(origin, network, frame, ...shown) {
    // unit vector, null if there is none, undefined if it is on its way; shown: scene and features of `frame`
    const key = JSON.stringify([network, origin]);
    if (this.directions.has(key)) return this.directions.get(key);
    const [scene, features] = origin.frame === frame ? shown : [this.store.peekScene(origin.frame), this.store.peekFeatures(origin.frame, network)];
    if (!scene || !features) {
      Promise.all([this.store.scene(origin.frame), this.store.features(origin.frame, network)]).then(this.news, this.fault);
      return undefined;
    }
    const placed = this.placed(origin);
    const direction = placed && directionOf(placed, scene, features);
    if (origin.pointer) return direction; // asked once
    if (this.directions.size >= 64) this.directions.clear();
    this.directions.set(key, direction);
    return direction;
  }

  answer(origin, network, frame, scene, features) {
    // {points: similarities (n), pixels: {values, w, h} a camera}, null if there is none, undefined if it is on its way
    const fromKernel = features.remote && !origin.regions;
    if (fromKernel) return this.askKernel(origin, network, frame, features);
    const direction = this.direction(origin, network, frame, scene, features);
    return direction && answerTo(direction, scene, features, origin.regions);
  }

  askKernel(origin, network, frame, features) {
    const key = JSON.stringify([frame, network, origin]);
    if (this.told.has(key) || this.busy) return this.told.get(key);
    this.busy = true;
    const keep = (answer) => {
      if (this.told.size >= 16) this.told.clear();
      this.told.set(key, answer);
    };
    this.source.request("similar", { frame, network, origin })
      .then(({ header, bytes }) => keep(sharesOf(unpack(header, bytes), features.grids)), (error) => { keep(null); this.fault(error); })
      .finally(() => { this.busy = false; this.news(); });
    return undefined;
  }
}

function sharesOf(arrays, grids) {
  const shares = (values) => Float32Array.from(values, (value) => (value === 65535 ? NaN : value / 65534));
  return { points: shares(arrays.points), pixels: grids.map(({ h, w }, c) => ({ h, w, values: shares(arrays[`pixels${c}`]) })) };
}

function cellAt(camera, grid, u, v) {
  const col = Math.min(Math.max(Math.floor(((u + 0.5) * grid.w) / camera.width), 0), grid.w - 1);
  const row = Math.min(Math.max(Math.floor(((v + 0.5) * grid.h) / camera.height), 0), grid.h - 1);
  return row * grid.w + col;
}

function regionOf(origin, scene) {
  // the superpixel of a pixel, or the superpoint of a point; -1 if it has none
  if (origin.kind === "point") return scene.region[origin.index];
  const { superpixels, width } = scene.cameras[origin.camera];
  return scene.regions[origin.camera] + superpixels[Math.round(origin.v) * width + Math.round(origin.u)];
}

function directionOf(origin, scene, features) {
  const { dim, grids } = features;
  if (origin.regions) {
    const region = regionOf(origin, scene);
    const kind = origin.kind === "point" ? features.superpoints : features.superpixels;
    return region < 0 ? null : vectorAt(region, dim, kind.features, kind.scales);
  }
  if (origin.kind === "point") return vectorAt(origin.index, dim, features.features, features.scales);
  const grid = grids[origin.camera];
  return vectorAt(cellAt(scene.cameras[origin.camera], grid, origin.u, origin.v), dim, grid.features, grid.scales);
}

function answerTo(direction, scene, features, byRegion) {
  if (byRegion && !scene.region) return null; // a frame without superpixels
  if (!byRegion) {
    return {
      points: similarityTo(direction, features.features, features.scales),
      pixels: features.grids.map((grid) => ({ h: grid.h, w: grid.w, values: similarityTo(direction, grid.features, grid.scales) })),
    };
  }
  const points = similarityTo(direction, features.superpoints.features, features.superpoints.scales);
  const pixels = similarityTo(direction, features.superpixels.features, features.superpixels.scales);
  return {
    points: Float32Array.from(scene.region, (region) => (region < 0 ? NaN : points[region])),
    pixels: scene.cameras.map(({ height, width, superpixels }, c) => ({
      h: height, w: width, values: Float32Array.from(superpixels, (id) => pixels[scene.regions[c] + id]),
    })),
  };
}

function valueAt(answer, origin, scene) {
  // of one answer at another place
  if (origin.kind === "point") return answer.points[origin.index];
  const grid = answer.pixels[origin.camera];
  return grid.values[cellAt(scene.cameras[origin.camera], grid, origin.u, origin.v)];
}

// --- pixels and points that show the same place ---

function nearestPoint({ seen, uv, width }, { u, v }) {
  // the visible point nearest to a pixel, -1 if none is within 2 % of the image's width
  let [best, row] = [(0.02 * width) ** 2, -1];
  for (let k = 0; k < seen.length; k++) {
    const distance = (uv[2 * k] - u) ** 2 + (uv[2 * k + 1] - v) ** 2;
    if (distance < best) [best, row] = [distance, seen[k]];
  }
  return row;
}

function pointOf(origin, scene) {
  return origin.kind === "point" ? origin.index : nearestPoint(scene.cameras[origin.camera], origin);
}

function pixelOf(origin, scene, camera) {
  // [u, v] in one camera's image, null if it is not in it
  if (origin.kind === "pixel") return origin.camera === camera ? [origin.u, origin.v] : null;
  const { seen, uv } = scene.cameras[camera];
  const k = seen.indexOf(origin.index);
  return k < 0 ? null : [uv[2 * k], uv[2 * k + 1]];
}
