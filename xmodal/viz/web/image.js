// One camera image: the picture, the heat map over it, superpixel boundaries, projected points, markers.

class ImageView {
  constructor(host, { hover, pick }) {
    this.canvas = document.createElement("canvas");
    this.canvas.className = "xm-image";
    this.canvas.tabIndex = 0;
    host.append(this.canvas);
    this.ctx = this.canvas.getContext("2d");
    this.layers = {}; // drawn once a frame: grey, points, boundaries
    this.markers = [];
    this.cursor = null; // [u, v] of the pointer or of the arrow keys
    this.shown = { opacity: 1, points: false, boundaries: false };
    this.hover = hover;
    this.pick = pick;
    this.listen();
  }

  listen() {
    const on = (name, act) => this.canvas.addEventListener(name, act);
    const at = (event) => {
      const box = this.canvas.getBoundingClientRect();
      const place = (part, whole, size) => Math.min(Math.max((part / whole) * size - 0.5, 0), size - 1);
      return [place(event.clientX - box.left, box.width, this.canvas.width), place(event.clientY - box.top, box.height, this.canvas.height)];
    };
    on("pointermove", (event) => { if (this.camera) { this.cursor = null; this.hover(...at(event)); } });
    on("pointerleave", () => this.hover(null));
    on("pointerup", (event) => { this.released = at(event); }); // to a part of a pixel; a click's place is a whole number
    on("click", (event) => { if (this.camera) { this.canvas.focus({ preventScroll: true }); this.pick(...(this.released ?? at(event)), event); } });
    on("keydown", (event) => this.key(event));
    on("blur", () => { this.cursor = null; this.draw(); });
  }

  key(event) {
    const move = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (!this.camera || (!move && event.key !== "Enter")) return;
    event.preventDefault();
    event.stopPropagation();
    const { width, height } = this.camera;
    const [u, v] = this.cursor ?? [Math.round(width / 2), Math.round(height / 2)];
    if (!move) return this.pick(u, v, event);
    const step = event.shiftKey ? 1 : Math.max(Math.round(width / 100), 1);
    this.cursor = [Math.min(Math.max(u + step * move[0], 0), width - 1), Math.min(Math.max(v + step * move[1], 0), height - 1)];
    this.hover(...this.cursor);
    this.draw();
  }

  show(camera, title, depthTable) {
    this.camera = camera;
    this.depthTable = depthTable;
    Object.assign(this.canvas, { width: camera.width, height: camera.height });
    this.canvas.setAttribute("role", "application");
    this.canvas.setAttribute("aria-label", `${title}: arrow keys move the pixel asked about, Enter pins it, Shift Enter adds it`);
    this.layers = {};
    this.heat = null;
  }

  setHeat(heat) { // {rgba, w, h}: a grid over the whole image; null: none
    this.heat = heat && layer(heat.w, heat.h, (data) => data.set(heat.rgba));
  }

  draw() {
    if (!this.camera) return;
    const { ctx, camera: { bitmap, width, height }, shown } = this;
    ctx.drawImage(bitmap, 0, 0, width, height);
    if (this.heat) {
      ctx.globalAlpha = shown.opacity;
      ctx.drawImage(this.layer("grey"), 0, 0);
      ctx.drawImage(this.heat, 0, 0, width, height);
      ctx.globalAlpha = 1;
    }
    if (shown.boundaries && this.camera.superpixels) ctx.drawImage(this.layer("boundaries"), 0, 0);
    if (shown.points) ctx.drawImage(this.layer("points"), 0, 0);
    const size = width / Math.max(this.canvas.clientWidth, 1); // of a CSS pixel
    for (const { uv, color, label } of this.markers) ring(ctx, uv, 8 * size, 2 * size, color, label);
    if (this.cursor) cross(ctx, this.cursor, 9 * size, 2 * size);
  }

  layer(name) {
    this.layers[name] ??= { grey: greyLayer, boundaries: boundaryLayer, points: pointLayer }[name](this.camera, this.depthTable);
    return this.layers[name];
  }
}

function layer(width, height, fill) {
  const canvas = document.createElement("canvas");
  Object.assign(canvas, { width, height });
  const ctx = canvas.getContext("2d");
  const pixels = ctx.createImageData(width, height);
  fill(pixels.data, ctx);
  ctx.putImageData(pixels, 0, 0);
  return canvas;
}

function greyLayer({ bitmap, width, height }) {
  // the image as a quiet background
  return layer(width, height, (data, ctx) => {
    ctx.drawImage(bitmap, 0, 0, width, height);
    data.set(ctx.getImageData(0, 0, width, height).data);
    for (let k = 0; k < data.length; k += 4) {
      data[k] = data[k + 1] = data[k + 2] = 0.5 * (0.299 * data[k] + 0.587 * data[k + 1] + 0.114 * data[k + 2]);
    }
  });
}

function boundaryLayer({ superpixels, width, height }) {
  return layer(width, height, (data) => {
    for (let row = 0, i = 0; row < height; row++) {
      for (let col = 0; col < width; col++, i++) {
        const right = col + 1 < width && superpixels[i] !== superpixels[i + 1];
        if (right || (row + 1 < height && superpixels[i] !== superpixels[i + width])) data.set([255, 212, 0, 210], 4 * i);
      }
    }
  });
}

function pointLayer({ seen, uv, depth, width, height }, table) {
  // squares coloured by depth, 2 to 80 m, the far ones first
  const side = Math.max(Math.round(width / 420), 1);
  const colors = paintValues(depth, 2, 80, table, true);
  const farFirst = Uint32Array.from(seen.keys()).sort((a, b) => depth[b] - depth[a]);
  return layer(width, height, (data) => {
    for (const k of farFirst) {
      const [left, top] = [Math.round(uv[2 * k] - (side - 1) / 2), Math.round(uv[2 * k + 1] - (side - 1) / 2)];
      for (let row = Math.max(top, 0); row < Math.min(top + side, height); row++) {
        for (let col = Math.max(left, 0); col < Math.min(left + side, width); col++) {
          data.set(colors.subarray(4 * k, 4 * k + 4), 4 * (row * width + col));
        }
      }
    }
  });
}

function ring(ctx, [u, v], radius, line, color, label) {
  for (const [width, style] of [[2.2 * line, "#0d1117"], [line, color]]) {
    ctx.beginPath();
    ctx.arc(u + 0.5, v + 0.5, radius, 0, 2 * Math.PI);
    Object.assign(ctx, { lineWidth: width, strokeStyle: style });
    ctx.stroke();
  }
  if (!label) return;
  Object.assign(ctx, { font: `600 ${1.5 * radius}px system-ui, sans-serif`, lineWidth: 1.5 * line, strokeStyle: "#0d1117", fillStyle: color });
  ctx.strokeText(label, u + 1.3 * radius, v - 0.7 * radius);
  ctx.fillText(label, u + 1.3 * radius, v - 0.7 * radius);
}

function cross(ctx, [u, v], reach, line) {
  for (const [width, style] of [[2.2 * line, "#0d1117"], [line, "#ffffff"]]) {
    ctx.beginPath();
    for (const [x, y] of [[1, 0], [-1, 0], [0, 1], [0, -1]]) {
      ctx.moveTo(u + 0.5 + (x * reach) / 3, v + 0.5 + (y * reach) / 3);
      ctx.lineTo(u + 0.5 + x * reach, v + 0.5 + y * reach);
    }
    Object.assign(ctx, { lineWidth: width, strokeStyle: style });
    ctx.stroke();
  }
}
