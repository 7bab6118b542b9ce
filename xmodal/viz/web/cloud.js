// The point cloud: WebGL2 draws points and grid, a 2D canvas above it what has letters; drawn only when something changed.

const CLOUD_PIXELS = 4e6; // most pixels of the backing store
const CLOUD_REACH = 6; // CSS pixels around the pointer in which a point is hit
const CLOUD_STILL = 4; // a pointer that moved less between press and release has clicked
const CLOUD_HELP =
  "Point cloud. Arrow keys turn, shift and arrow keys move, plus and minus zoom, Home resets the view, " +
  "Enter picks the point nearest to the middle.";
const CLOUD_NO_GL =
  "The point cloud needs WebGL2, which this browser does not offer here. " +
  "Turn on graphics acceleration in its settings, or open this page in a current Chrome, Edge, Firefox or Safari.";
const CLOUD_LOST = "The browser took the graphics memory away. The cloud comes back by itself; if not, close other 3D views.";

class CloudView {
  constructor(host, { hover = () => {}, pick = () => {} } = {}) {
    Object.assign(this, { host, onHover: hover, onPick: pick });
    Object.assign(this, { orbit: new Orbit(), size: 2.5, names: [""], markers: [], width: 0, height: 0 });
    Object.assign(this, { xyz: null, ground: -1.7, colors: [new Uint8Array(0), new Uint8Array(0)] });
    Object.assign(this, { hovered: -1, told: "", pointer: null, fingers: new Map(), moved: 0, dragged: false, released: [0, 0] });
    Object.assign(this, { stale: 0, frame: 0, hint: 0 }); // stale: 1 = the overlay, 2 = everything
    this.leave = new AbortController(); // takes all listeners away at once
    this.furnish();
    this.start();
    this.listen();
    this.observer = new ResizeObserver(([entry]) => this.resize(entry));
    try {
      this.observer.observe(this.canvas, { box: "device-pixel-content-box" }); // tells of a new pixel ratio too
    } catch {
      this.observer.observe(this.canvas); // Safari
    }
  }

  setPoints(xyz, ground) {
    Object.assign(this, { xyz, ground, hovered: -1, told: "" });
    this.scene?.upload(this.scene.positions, xyz);
    const bytes = (xyz.length / 3) * 4;
    this.colors.forEach((colors, side) => colors.length === bytes || this.setColors(side, new Uint8Array(bytes).fill(160)));
    this.draw();
  }

  setColors(side, rgba) {
    const points = this.xyz ? this.xyz.length / 3 : 0;
    if (rgba.length !== 4 * points) throw new RangeError(`setColors: ${rgba.length} bytes for ${points} points; give 4 a point`);
    this.colors[side] = rgba;
    this.scene?.upload(this.scene.colors[side], rgba);
    this.draw();
  }

  setSides(names) {
    this.names = names.slice(0, 2);
    this.draw();
  }

  setMarkers(markers) {
    this.markers = markers;
    this.redraw(1);
  }

  get pointSize() {
    return this.size;
  }

  set pointSize(size) {
    this.size = size;
    this.draw();
  }

  get view() {
    return this.orbit.state;
  }

  set view(state) {
    this.orbit.state = state;
    this.draw();
  }

  look(name) {
    this.orbit.look(name, this.ground);
    this.draw();
  }

  draw() {
    this.redraw(2);
  }

  drawNow() {
    this.stale = 0;
    if (!this.width || !this.height) return;
    const camera = this.camera();
    const edge = (side) => Math.round((side * this.canvas.width) / this.names.length);
    const count = this.xyz ? this.xyz.length / 3 : 0;
    this.names.forEach((_, side) => this.scene?.draw(side, edge(side), edge(side + 1), count, camera));
    this.drawOverlay();
  }

  pickAt(x, y) {
    const side = this.sideAt(x);
    // The front-most; of those about as far away, the one nearest to the pointer.
    return this.nearest(side, x - side * this.pane, y, CLOUD_REACH, (depth, away) => depth * (1 + 0.02 * away));
  }

  locate(index) {
    if (!this.width || !this.xyz || !(3 * index < this.xyz.length) || index < 0) return null;
    const at = this.project(this.xyz.subarray(3 * index, 3 * index + 3));
    return at && at.slice(0, 2);
  }

  picture() {
    this.drawNow();
    const [width, height] = [this.canvas.width || 1, this.canvas.height || 1]; // hidden: an empty picture
    const copy = Object.assign(document.createElement("canvas"), { width, height });
    const ctx = copy.getContext("2d");
    ctx.fillStyle = CLOUD_LOOK.ground;
    ctx.fillRect(0, 0, width, height);
    if (this.scene && this.width) ctx.drawImage(this.canvas, 0, 0);
    if (this.width) this.paint(ctx);
    return copy;
  }

  destroy() {
    this.leave.abort();
    this.observer.disconnect();
    cancelAnimationFrame(this.frame);
    clearTimeout(this.hint);
    this.gl?.getExtension("WEBGL_lose_context")?.loseContext();
    this.host.replaceChildren();
    Object.assign(this, { gl: null, scene: null, xyz: null, width: 0, height: 0 });
  }

  furnish() {
    const add = (tag, style) => {
      const element = this.host.appendChild(document.createElement(tag));
      element.style.cssText = style;
      return element;
    };
    const fill = "position:absolute;inset:0;width:100%;height:100%;display:block;";
    this.canvas = add("canvas", fill);
    this.overlay = add("canvas", `${fill}pointer-events:none;`);
    this.notice = add("p", `position:absolute;inset:auto 0 50%;margin:0 auto;padding:0 1.5em;max-width:34em;text-align:center;
      pointer-events:none;transform:translateY(50%);font:14px/1.5 ${CLOUD_FONT};color:${CLOUD_LOOK.ink};`);
    this.notice.setAttribute("role", "status");
    const attributes = { tabindex: "0", role: "application", "aria-label": CLOUD_HELP };
    for (const [name, value] of Object.entries(attributes)) this.host.setAttribute(name, value);
    const style = { background: CLOUD_LOOK.ground, touchAction: "none", userSelect: "none", cursor: "grab", outline: "none" };
    Object.assign(this.host.style, style);
  }

  // Takes hold of the graphics card, at first and after it was lost.
  start() {
    this.gl ??= this.canvas.getContext("webgl2", { alpha: false, antialias: false });
    this.scene = this.gl && !this.gl.isContextLost() ? new CloudScene(this.gl) : null;
    if (this.xyz) this.scene?.upload(this.scene.positions, this.xyz);
    this.colors.forEach((colors, side) => this.scene?.upload(this.scene.colors[side], colors));
    this.inform();
  }

  // Says why nothing can be drawn, if so.
  inform() {
    this.notice.textContent = !this.gl ? CLOUD_NO_GL : !this.scene ? CLOUD_LOST : "";
  }

  listen() {
    const on = (target, handlers) => {
      for (const [type, handle] of Object.entries(handlers)) {
        target.addEventListener(type, handle.bind(this), { signal: this.leave.signal, passive: false });
      }
    };
    const { press, move, release, out, click, recentre, wheel, key } = this;
    const repaint = () => this.redraw(1);
    on(this.host, { pointerdown: press, pointermove: move, pointerup: release, pointercancel: release, lostpointercapture: release });
    on(this.host, { pointerleave: out, click, dblclick: recentre, wheel, keydown: key, focus: repaint, blur: repaint });
    on(this.host, { contextmenu: (event) => event.preventDefault() }); // the right button moves the view
    on(this.canvas, { webglcontextlost: this.lost, webglcontextrestored: this.restored });
  }

  lost(event) {
    event.preventDefault(); // without this it would never come back
    this.scene = null;
    this.inform();
  }

  restored() {
    this.start();
    this.drawNow();
  }

  // Draws within the callback, before the browser shows the new size: nothing flickers.
  resize({ contentRect, devicePixelContentBoxSize }) {
    const { width, height } = contentRect;
    const [exact] = devicePixelContentBoxSize ?? [];
    const near = (size, other) => (Math.abs(size - other) < 2 ? size : other); // an emulated pixel ratio is not in the exact size
    const across = near(exact?.inlineSize, width * devicePixelRatio);
    const down = near(exact?.blockSize, height * devicePixelRatio);
    const less = Math.min(1, Math.sqrt(CLOUD_PIXELS / Math.max(1, across * down)));
    for (const canvas of [this.canvas, this.overlay]) {
      Object.assign(canvas, { width: Math.round(across * less), height: Math.round(down * less) });
    }
    Object.assign(this, { width, height });
    this.drawNow();
  }

  // Within the next animation frame, however often it is asked for.
  redraw(what) {
    this.stale = Math.max(this.stale, what);
    if (!this.leave.signal.aborted) this.frame ||= requestAnimationFrame(() => this.tick());
  }

  tick() {
    if (this.pointer) this.hover(this.pickAt(...this.pointer), this.sideAt(this.pointer[0])); // may ask for new colours, drawn below
    this.pointer = null;
    this.frame = 0;
    if (this.stale === 2) this.drawNow();
    else if (this.stale === 1) this.drawOverlay();
  }

  get pane() {
    return this.width / this.names.length;
  }

  sideAt(x) {
    return x >= this.pane && this.names.length > 1 ? 1 : 0;
  }

  camera() {
    const { orbit, pane, height, ground, size } = this;
    const ratio = this.canvas.width / this.width;
    const rise = Math.abs(orbit.target[2] + orbit.distance * orbit.axes().back[2] - ground);
    const crowding = 10 * rise * orbit.focal(pane, height) * ratio;
    return { matrix: orbit.matrix(pane, height), near: orbit.near(), pointSize: size, ratio, ground, crowding };
  }

  project(point) {
    return cloudProject(this.orbit.matrix(this.pane, this.height), point, this.pane, this.height);
  }

  // Index of the drawn point with the least cost(depth, pixels away) within `reach` pixels of (x, y) in a pane, or -1.
  nearest(side, x, y, reach, cost) {
    if (!this.xyz || !this.width) return -1;
    const m = this.orbit.matrix(this.pane, this.height);
    const [halfX, halfY] = [this.pane / 2, this.height / 2];
    const row = (i, half, shift) => [0, 4, 8, 12].map((j) => half * m[j + i] + shift * m[j + 3]); // times depth: pixels from (x, y)
    const [ax, ay, az, aw] = row(0, halfX, halfX - x);
    const [bx, by, bz, bw] = row(1, -halfY, halfY - y);
    const [cx, cy, cz, cw] = [m[3], m[7], m[11], m[15]];
    const { xyz, colors, orbit } = this;
    const near = orbit.near();
    let [best, least] = [-1, Infinity];
    for (let i = 0, j = 0; j < xyz.length; i++, j += 3) {
      const [px, py, pz] = [xyz[j], xyz[j + 1], xyz[j + 2]];
      const depth = cx * px + cy * py + cz * pz + cw;
      const wide = reach * depth;
      const a = ax * px + ay * py + az * pz + aw;
      if (!(depth > near) || !(a <= wide) || a < -wide) continue; // a NaN fails too
      const away = Math.hypot(a, bx * px + by * py + bz * pz + bw) / depth;
      if (!(away <= reach) || colors[side][4 * i + 3] === 0) continue;
      const paid = cost(depth, away);
      if (paid < least) [best, least] = [i, paid];
    }
    return best;
  }

  hover(index, side) {
    const told = `${index} ${side}`;
    if (told === this.told) return;
    Object.assign(this, { told, hovered: index });
    this.host.style.cursor = index < 0 ? "grab" : "crosshair";
    this.redraw(1);
    this.onHover(index, side);
  }

  at(event) {
    const box = this.canvas.getBoundingClientRect();
    return [event.clientX - box.left, event.clientY - box.top];
  }

  press(event) {
    this.host.focus({ preventScroll: true });
    this.host.setPointerCapture(event.pointerId);
    this.fingers.set(event.pointerId, this.at(event));
    Object.assign(this, { moved: 0, dragged: this.fingers.size > 1 });
  }

  move(event) {
    const now = this.at(event);
    const before = this.fingers.get(event.pointerId);
    if (before) return this.drag(event, before, now);
    if (event.buttons || event.pointerType === "touch") return;
    this.pointer = now;
    this.redraw(0);
  }

  drag(event, before, now) {
    const [dx, dy] = [now[0] - before[0], now[1] - before[1]];
    this.fingers.set(event.pointerId, now);
    this.moved += Math.hypot(dx, dy);
    this.dragged ||= this.moved > (event.pointerType === "mouse" ? CLOUD_STILL : 2 * CLOUD_STILL);
    if (!this.dragged) return;
    this.hover(-1, this.sideAt(now[0]));
    this.host.style.cursor = "grabbing";
    if (this.fingers.size > 1) this.pinch(event.pointerId, before, now);
    else if (event.shiftKey || event.buttons & 6) this.orbit.pan(dx, dy, this.scale);
    else this.orbit.turn((-Math.PI * dx) / this.height, (Math.PI * dy) / this.height);
    this.draw();
  }

  // One of two fingers went from `before` to `now`: the middle of both moves, their distance zooms.
  pinch(finger, before, now) {
    const [, still] = [...this.fingers].find(([id]) => id !== finger);
    const span = ([x, y]) => Math.max(20, Math.hypot(x - still[0], y - still[1]));
    this.orbit.pan((now[0] - before[0]) / 2, (now[1] - before[1]) / 2, this.scale);
    this.zoom(span(before) / span(now), [(now[0] + still[0]) / 2, (now[1] + still[1]) / 2]);
  }

  release(event) {
    this.released = this.at(event);
    if (!this.fingers.delete(event.pointerId) || event.pointerType === "touch") return;
    this.host.style.cursor = "grab";
    this.move(event); // what lies under the pointer now
  }

  out() {
    this.pointer = null;
    if (this.hovered >= 0) this.hover(-1, 0);
  }

  click(event) {
    if (this.dragged || event.detail > 1) return; // the second click of two turns the view
    const index = this.pickAt(...this.released); // a click's own place is rounded to whole pixels
    if (index >= 0) this.onPick(index, event);
  }

  recentre(event) {
    const index = this.pickAt(...this.at(event));
    if (index >= 0) this.view = { target: this.xyz.subarray(3 * index, 3 * index + 3) };
  }

  wheel(event) {
    if (!event.ctrlKey && !this.host.matches(":focus")) return this.explainWheel();
    event.preventDefault();
    const pixels = event.deltaY * [1, 16, 400][event.deltaMode] * (event.ctrlKey ? 4 : 1); // a pinched touchpad sends ctrl and little
    this.zoom(Math.exp(0.0015 * Math.min(Math.max(pixels, -200), 200)), this.at(event));
  }

  explainWheel() {
    clearTimeout(this.hint);
    this.hint = setTimeout(() => this.redraw(1, (this.hint = 0)), 1500);
    this.redraw(1);
  }

  // Pixels a metre at the target.
  get scale() {
    return this.orbit.scale(this.pane, this.height);
  }

  zoom(factor, [x, y]) {
    this.orbit.zoom(factor, x - this.sideAt(x) * this.pane - this.pane / 2, y - this.height / 2, this.scale);
    this.draw();
  }

  key(event) {
    if (event.ctrlKey || event.altKey || event.metaKey || event.target !== this.host) return;
    const arrow = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] }[event.key];
    const middle = [this.pane / 2, this.height / 2];
    const others = {
      "+": () => this.zoom(1 / 1.2, middle),
      "=": () => this.zoom(1 / 1.2, middle),
      "-": () => this.zoom(1.2, middle),
      Home: () => this.look("behind"),
      Enter: () => this.pickMiddle(event),
    };
    if (arrow && event.shiftKey) this.orbit.pan(-40 * arrow[0], 40 * arrow[1], this.scale);
    else if (arrow) this.orbit.turn(arrow[0] * 0.08, arrow[1] * 0.08);
    else if (others[event.key]) others[event.key]();
    else return;
    event.preventDefault();
    event.stopPropagation();
    this.draw();
  }

  pickMiddle(event) {
    const index = this.nearest(0, this.pane / 2, this.height / 2, Math.hypot(this.pane, this.height), (depth, away) => away);
    if (index >= 0) this.onPick(index, event);
  }

  drawOverlay() {
    this.stale = 0;
    if (!this.width || !this.height) return;
    const ctx = this.overlay.getContext("2d");
    ctx.setTransform(1, 0, 0, 1, 0, 0);
    ctx.clearRect(0, 0, this.overlay.width, this.overlay.height);
    this.paint(ctx);
    if (this.host.matches(":focus-visible")) this.paintFocus(ctx);
    if (this.hint) cloudText(ctx, "Click the view, or hold ctrl, to zoom with the wheel", this.width / 2, this.height - 60, { align: "center", font: "14px" });
  }

  // All that is written and marked, on any canvas as large as the cloud's.
  paint(ctx) {
    ctx.setTransform(this.canvas.width / this.width, 0, 0, this.canvas.height / this.height, 0, 0);
    this.names.forEach((name, side) => {
      ctx.save();
      ctx.beginPath();
      ctx.rect(side * this.pane, 0, this.pane, this.height);
      ctx.clip();
      ctx.translate(side * this.pane, 0);
      if (this.scene) this.paintRanges(ctx);
      this.paintMarkers(ctx);
      cloudText(ctx, name, 14, 20, { font: "600 13px" });
      ctx.restore();
    });
    ctx.fillStyle = CLOUD_LOOK.line;
    if (this.names.length > 1) ctx.fillRect(this.pane - 0.5, 0, 1, this.height);
    cloudGizmo(ctx, this.orbit, 48, this.height - 48);
    cloudScaleBar(ctx, this.scale, this.width - 16, this.height - 16);
  }

  // The rings' metres, to the right of the line of sight; those that would touch are left out.
  paintRanges(ctx) {
    const angle = this.orbit.azimuth + Math.PI - 0.5;
    let last = [-100, -100];
    for (const radius of CLOUD_RINGS) {
      const at = this.project([radius * Math.cos(angle), radius * Math.sin(angle), this.ground]);
      const whole = at && at[0] < this.pane - 24 && at[0] > 24; // not cut off at the side
      if (!whole || Math.hypot(at[0] - last[0], at[1] - last[1]) < 36) continue;
      cloudText(ctx, `${radius} m`, at[0], at[1], { color: CLOUD_LOOK.muted, font: "11px", align: "center" });
      last = at;
    }
  }

  paintMarkers(ctx) {
    for (const { xyz, color, label } of this.markers) {
      const at = this.project(xyz);
      if (!at) continue;
      cloudRing(ctx, at, 8, color);
      cloudText(ctx, label ?? "", at[0] + 12, at[1] - 10, { color, font: "700 13px" });
    }
    const at = this.hovered >= 0 && this.project(this.xyz.subarray(3 * this.hovered, 3 * this.hovered + 3));
    if (at) cloudRing(ctx, at, 6, CLOUD_LOOK.ink);
  }

  // Where the keyboard acts: a frame, and a cross at what Enter picks.
  paintFocus(ctx) {
    const [x, y] = [this.pane / 2, this.height / 2];
    Object.assign(ctx, { strokeStyle: CLOUD_LOOK.mark, lineWidth: 2 });
    ctx.strokeRect(1, 1, this.width - 2, this.height - 2);
    const cross = () => [[1, 0], [-1, 0], [0, 1], [0, -1]].forEach(([i, j]) => (ctx.moveTo(x + 4 * i, y + 4 * j), ctx.lineTo(x + 9 * i, y + 9 * j)));
    cloudStroke(ctx, CLOUD_LOOK.mark, 1.5, cross);
  }
}
