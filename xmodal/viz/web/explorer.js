// The explorer: questions from images and cloud, answers painted on both. What is shown is the model's state and nothing else.

class Explorer {
  constructor(el, model, source) {
    this.model = model;
    this.source = source;
    this.store = new Store(source);
    this.questions = new Questions(this.store, source, { news: () => this.soon(), fault: (error) => this.note([error.message], true) });
    this.controls = new Controls(model);
    this.tables = Object.fromEntries(Object.entries(model.get("tables")).map(([name, hex]) => [name, lookupTable(hex)]));
    this.scene = null; // of the frame that is shown
    this.sides = []; // one or two: {network, features or error, answers, range}
    this.hovered = null; // origin under the pointer
    this.lastHovered = null; // what is asked until something else is
    this.loading = false; // one frame at a time, then the one that is wanted by then
    this.outdated = false; // another frame or network is wanted than the one that is loading
    this.gone = false;
    this.build(el);
    this.watch();
  }

  get(name) { return this.model.get(name); }
  set(name, value) { this.controls.set(name, value); }

  build(el) {
    const part = (className) => element("div", { className });
    this.root = element("div", { className: "xm-explorer", tabIndex: -1 });
    this.root.explorer = this; // for scripts and tests
    this.root.style.setProperty("--tall", `${this.get("height")}px`);
    this.acts = this.actions();
    [this.notes, this.body, this.foot, this.reading, this.legend, this.pins] = ["notes", "body", "foot", "reading", "legend", "pins"].map((name) => part(`xm-${name}`));
    this.notes.setAttribute("role", "status");
    this.reading.setAttribute("aria-live", "polite");
    this.help = helpPanel();
    this.images = new ImageColumns({ hover: (origin) => this.hover(origin), pick: (origin, more) => this.pin(origin, more) });
    const cloud = part("xm-cloud");
    this.body.append(...this.images.columns, cloud);
    this.foot.append(this.reading, this.legend, this.pins);
    this.root.append(...toolbar(this.controls, this.model, this.acts), this.notes, this.body, this.foot, this.help);
    el.append(this.root);
    this.cloud = new CloudView(cloud, {
      hover: (index) => this.hover(index < 0 ? null : this.pointAt(index)),
      pick: (index, event) => this.pin(this.pointAt(index), event.shiftKey),
    });
    this.keys = keyActions(this.model, (name, value) => this.set(name, value), this.acts);
    this.root.addEventListener("keydown", (event) => this.key(event));
  }

  watch() {
    const on = (names, act) => names.split(" ").forEach((name) => this.controls.watch(name, act));
    on("frame a b", () => this.load());
    on("camera", () => this.arrange());
    on("height", () => this.root.style.setProperty("--tall", `${this.get("height")}px`));
    on("queries regions", () => this.soon());
    on("color_by color_map auto_range low high threshold opacity show_points show_boundaries", () => this.soon("paint"));
    on("point_size", () => this.soon("paint"));
    on("playing", () => this.play());
    this.load();
  }

  actions() {
    const count = this.get("contents").frames.length;
    const step = (by) => () => this.set("frame", (this.get("frame") + by + count) % count);
    const clear = () => { this.lastHovered = null; this.set("queries", []); this.soon(); };
    const help = () => { this.help.hidden = !this.help.hidden; };
    return {
      back: step(-1), ahead: step(1), clear, help, picture: () => this.download(),
      escape: () => (this.help.hidden ? clear() : help()),
      full: () => (document.fullscreenElement ? document.exitFullscreen() : this.root.requestFullscreen?.()),
      cameras: () => this.cameraNames(), top: () => this.cloud.look("top"),
      swap: () => { if (this.get("b")) { const a = this.get("a"); this.set("a", this.get("b")); this.set("b", a); } },
    };
  }

  key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    event.stopPropagation(); // also keys without a meaning here: to JupyterLab "b" is a new cell, "d d" the end of one
    const { tagName } = event.target;
    const typed = tagName === "SELECT" || (tagName === "BUTTON" && event.key === " ");
    const act = !typed && this.keys[event.key.length === 1 ? event.key.toLowerCase() : event.key];
    if (!act) return;
    event.preventDefault();
    act();
  }

  // --- frames ---

  async load() {
    if (this.loading) { this.outdated = true; return; }
    this.loading = true;
    this.outdated = false;
    const frame = this.get("frame");
    const networks = [this.get("a"), this.get("b")].filter(Boolean);
    const waiting = setTimeout(() => this.note([this.source.waits]), 1500);
    const sides = networks.map((network) => this.store.features(frame, network).then((features) => ({ network, features }), (error) => ({ network, error: error.message })));
    try {
      const loaded = await Promise.all([this.store.scene(frame), ...sides]);
      if (!this.gone) this.show(frame, ...loaded);
    } catch (error) {
      if (!this.gone) this.fail(frame, error);
    }
    clearTimeout(waiting);
    this.loading = false;
    if (this.gone) return;
    if (this.outdated) this.load();
    else this.play();
  }

  show(frame, scene, ...sides) {
    const first = this.frame === undefined;
    this.frame = frame;
    this.scene = this.store.shown = scene;
    this.sides = sides.length ? sides : [{ network: "" }];
    this.hovered = null;
    const pair = sides.length > 1;
    this.root.classList.toggle("xm-pair", pair);
    this.cloud.setSides(pair ? sides.map(({ network }, s) => `${"AB"[s]}  ${network}`) : [""]);
    this.cloud.setPoints(scene.points, scene.ground);
    if (first) this.cloud.look("behind"); // from then on the view is the user's
    const said = sides.flatMap(({ network, features, error }) => (error ? [error] : features.notices).map((text) => (pair ? `${network}: ${text}` : text)));
    this.note([...scene.notices, ...said], !scene.count || sides.some(({ error }) => error));
    this.arrange();
    this.refresh();
    this.root.dataset.shown = frame;
  }

  fail(frame, error) {
    this.frame = frame;
    this.scene = null;
    this.cloud.setMarkers([]);
    this.cloud.setPoints(new Float32Array(0), 0);
    this.images.show(null, [], [], this.tables);
    this.legend.replaceChildren();
    this.read();
    this.note([error.message], true);
    this.root.dataset.shown = "none";
  }

  note(lines, bad = false) {
    this.notes.classList.toggle("xm-bad", Boolean(bad));
    this.notes.replaceChildren(...lines.map((line) => element("p", {}, line)));
  }

  play() {
    clearTimeout(this.timer);
    const next = () => this.set("frame", (this.frame + 1) % this.get("contents").frames.length);
    if (this.get("playing")) this.timer = setTimeout(next, 1000 / Math.max(this.get("fps"), 0.1));
  }

  // --- cameras ---

  cameraNames() {
    const names = this.scene?.cameras.map(({ name }) => name) ?? [];
    return names.length > 1 ? [...names, "all"] : names;
  }

  arrange() {
    if (!this.scene) return;
    const [names, all] = [this.cameraNames(), [...this.scene.cameras.keys()]];
    const chosen = names.includes(this.get("camera")) ? this.get("camera") : names[0];
    this.controls.options("camera", names, chosen);
    this.images.show(this.scene, chosen === "all" ? all : all.filter((c) => this.scene.cameras[c].name === chosen), this.sides, this.tables);
    this.soon();
  }

  // --- questions ---

  hover(origin) {
    this.hovered = origin && this.scene && this.asking(origin);
    if (this.hovered) this.lastHovered = { ...this.hovered, pointer: true };
    if (this.hovered && !this.get("queries").length) this.soon();
    else this.read();
  }

  pointAt(index) {
    return { kind: "point", index, point: this.scene.rows?.[index] ?? index };
  }

  asking(place) {
    return { frame: this.frame, ...place, regions: this.get("regions") && Boolean(this.scene.region) };
  }

  pin({ index, ...place }, more) {
    const before = more ? this.get("queries").slice(0, PIN_COLORS.length - 1) : [];
    this.set("queries", [...before, this.asking(place)]);
  }

  current() {
    // the pinned queries, else what the pointer asks or has asked last
    const pinned = this.get("queries");
    const origins = pinned.length || !this.lastHovered ? pinned : [{ ...this.lastHovered, ...this.asking(this.lastHovered) }];
    return origins.map((origin, q) => ({ origin, color: PIN_COLORS[q % PIN_COLORS.length], label: pinned.length ? String(q + 1) : "" }));
  }

  answer() {
    const current = this.current();
    for (const side of this.sides) {
      const before = side.answers ?? [];
      side.answers = side.features ? current.map((query) => this.answered(query, side, before)).filter(Boolean) : [];
    }
    this.mark(current);
    this.listPins(current);
  }

  answered(query, { network, features }, before) {
    // the query with its answer; while that is on its way, the one before; null if there is none
    const found = this.questions.answer(query.origin, network, this.frame, this.scene, features);
    return found === undefined ? before.find(({ label }) => label === query.label) : found && { ...query, ...found };
  }

  mark(current) {
    // rings where the queries of this frame were asked, in the cloud and in every image
    const here = current.filter(({ origin }) => origin.frame === this.frame).map((query) => ({ ...query, origin: this.questions.placed(query.origin) })).filter(({ origin }) => origin);
    const spots = here.map(({ origin, ...look }) => ({ row: pointOf(origin, this.scene), ...look })).filter(({ row }) => row >= 0);
    this.cloud.setMarkers(spots.map(({ row, ...look }) => ({ xyz: [...this.scene.points.subarray(3 * row, 3 * row + 3)], ...look })));
    this.images.each((view, camera) => {
      view.markers = here.map(({ origin, ...look }) => ({ uv: pixelOf(origin, this.scene, camera), ...look })).filter(({ uv }) => uv);
    });
  }

  listPins(current) {
    const pins = current.filter(({ label }) => label).map(({ origin, color, label }, q) => {
      const name = origin.kind === "pixel" ? `pixel (${origin.u}, ${origin.v})` : `point ${origin.point}`;
      const left = origin.frame === this.frame && !this.questions.placed(origin) ? ", not among the points shown" : "";
      return { q, color, text: `${label}  ${name}, frame ${origin.frame + 1}${left}  ×` };
    });
    const listed = JSON.stringify(pins);
    if (listed === this.listed) return; // a button that is made anew loses the focus
    this.listed = listed;
    const held = this.pins.contains(document.activeElement);
    this.pins.replaceChildren(...pins.map(({ q, color, text }) => {
      const pin = element("button", { type: "button", title: "Unpin this query" }, text);
      pin.style.borderColor = color;
      pin.addEventListener("click", () => this.set("queries", this.get("queries").filter((_, other) => other !== q)));
      return pin;
    }));
    if (held) (this.pins.firstChild ?? this.root).focus();
  }

  // --- painting ---

  paint() {
    const by = this.get("color_by");
    const style = { threshold: this.get("threshold"), table: this.tables[this.get("color_map")] };
    const shown = { opacity: this.get("opacity"), points: this.get("show_points"), boundaries: this.get("show_boundaries") };
    this.sides.forEach((side, s) => {
      side.range = rangeOf(side.answers, this.model);
      this.cloud.setColors(s, cloudColors(by, this.scene, side, style, this.tables));
    });
    this.cloud.pointSize = this.get("point_size");
    this.cloud.drawNow();
    this.images.each((view, camera, s) => {
      view.shown = shown;
      view.setHeat(heatOf(this.sides[s], camera, by, style));
      view.draw();
    });
    this.legend.replaceChildren(...legendOf(by, this.scene, this.sides, this.tables, this.get("color_map")));
    this.read();
  }

  read() {
    // what is under the pointer, in words
    const hint = this.get("queries").length ? "" : "Hover over a pixel or a point to ask; click to pin the question.";
    this.reading.textContent = this.hovered && this.scene ? this.words(this.hovered).join("  ·  ") : hint;
  }

  words(origin) {
    const { scene, sides } = this;
    const row = pointOf(origin, scene);
    const words = [origin.kind === "pixel" ? `${scene.cameras[origin.camera].name} (${Math.round(origin.u)}, ${Math.round(origin.v)})` : `point ${scene.rows?.[row] ?? row}`];
    if (row >= 0) {
      const xyz = [...scene.points.subarray(3 * row, 3 * row + 3)];
      words.push(`x ${xyz[0].toFixed(1)}  y ${xyz[1].toFixed(1)}  z ${xyz[2].toFixed(1)} m`, `range ${Math.hypot(...xyz).toFixed(1)} m`);
      if (scene.label) words.push(scene.classes[scene.label[row]] ?? `class ${scene.label[row]}`);
    }
    sides.forEach(({ answers }, s) => {
      const found = answers.map((answer) => valueAt(answer, origin, scene)).map((value) => (value >= 0 ? value.toFixed(3) : "none"));
      if (found.length) words.push(`similarity${sides.length > 1 ? ` ${"AB"[s]}` : ""} ${found.join(" / ")}`);
    });
    return words;
  }

  soon(what = "answer") {
    // one answer and one painting for each refresh of the screen, however many events there were
    this.unanswered ||= what === "answer";
    this.waiting ||= requestAnimationFrame(() => this.refresh(this.unanswered));
  }

  refresh(unanswered = true) {
    cancelAnimationFrame(this.waiting);
    this.waiting = 0;
    this.unanswered = false;
    if (!this.scene) return;
    if (unanswered) this.answer();
    this.paint();
  }

  // --- the rest ---

  download() {
    if (!this.scene) return;
    montage(this.images.canvases(), this.cloud.picture()).toBlob((blob) => {
      const link = element("a", { href: URL.createObjectURL(blob), download: `${this.scene.id.replaceAll("/", "_")}.png` });
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 1000);
    });
  }

  destroy() {
    clearTimeout(this.timer);
    cancelAnimationFrame(this.waiting);
    this.scene = null;
    this.gone = true;
    this.controls.destroy();
    this.cloud.destroy();
    this.store.close();
    this.root.remove();
  }
}

function render({ model, el }) {
  const explorer = new Explorer(el, model, kernelSource(model));
  return () => explorer.destroy();
}

function openPage(el) {
  const { state, packs } = JSON.parse(document.getElementById("explorer-state").textContent);
  const explorer = new Explorer(el, pageModel(state), pageSource(packs));
  document.body.addEventListener("keydown", (event) => explorer.key(event)); // keys need no click first
}
