// The rows of controls, the keys that do the same, and the list of keys.

const COLOR_BY = ["similarity", "height", "range", "intensity", "label", "pca", "camera"];
const COLOR_MAPS = ["magma", "viridis", "cividis"];
const KEYS = [
  ["click", "ask about a pixel or a point and pin it; with Shift: one more beside it"], ["Esc, Backspace", "unpin all, the last one"],
  ["Space", "play, pause"], [", and .", "one frame back, one ahead"], ["1 to 7", `colour the cloud by ${COLOR_BY.join(", ")}`],
  ["M, C, X", "next colour map, next camera, swap A and B"], ["P, S, R", "projected points, superpixel boundaries, whole regions"],
  ["E, F, ?", "save a picture, full screen, this list"], ["on an image", "arrows move the pixel that asks (Shift: by one), Enter pins it"],
  ["on the cloud", "drag or arrows turn; right drag or Shift move; wheel, + and - zoom; Home: from behind, T: from above; Enter pins the point in the middle"],
];

function toolbar(controls, model, acts) {
  const { frames, networks, superpixels } = model.get("contents");
  const group = (...children) => element("div", { className: "xm-group" }, ...children);
  const two = (value) => value.toFixed(2);
  const c = controls;
  const last = frames.length - 1;
  const frame = c.slider("frame", "Frame", { min: 0, max: last, step: 1, tell: (i) => `${i + 1} / ${last + 1}   ${frames[i] ?? ""}` });
  frame.classList.add("xm-wide");
  const first = [
    group(c.button("back", "◀", "Previous frame (,)", acts.back), c.toggle("playing", "Play", "Go through the frames (Space)"), c.button("ahead", "▶", "Next frame (.)", acts.ahead)),
    frame, c.choice("camera", "Camera", [], "Which image (C)"),
  ];
  const names = networks.map((name) => [name, name]);
  if (networks.length) first.push(c.choice("a", networks.length > 1 ? "A" : "Network", names, "Whose features are shown"));
  if (networks.length > 1) first.push(c.choice("b", "B", [["", "none"], ...names], "A second network, asked the same (X swaps them)"));
  const whole = superpixels ? "Ask and answer by whole superpixels and superpoints (R)" : "Needs superpixels: give them to the explorer";
  const edges = superpixels ? "Boundaries of the superpixels (S)" : whole;
  const regional = [c.toggle("show_boundaries", "Superpixels", edges), c.toggle("regions", "Regions", whole)];
  for (const button of regional) button.disabled = !superpixels;
  const second = [
    c.choice("color_by", "Colour", COLOR_BY.map((name) => [name, name === "pca" ? "PCA" : name]), "Of the cloud (1 to 7)"),
    c.choice("color_map", "Map", COLOR_MAPS.map((name) => [name, name]), "Colours of similarity (M)"),
    c.toggle("auto_range", "Auto", "Colours end at the 30 % and 99.9 % quantiles of all similarities"),
    ...[["low", "from"], ["high", "to"]].map(([name, label]) => c.slider(name, label, { min: 0, max: 1, step: 0.01, tell: two, also: () => c.set("auto_range", false), title: "Similarity at which the colours end; moving it turns Auto off" })),
    c.slider("threshold", "Hide below", { min: 0, max: 1, step: 0.01, tell: two, title: "Similarity under which points are grey and pixels show the image" }),
    c.slider("point_size", "Size", { min: 0.5, max: 8, step: 0.5, title: "Of the points, in screen pixels 20 m away" }),
    c.slider("opacity", "Heat", { min: 0, max: 1, step: 0.05, tell: (value) => `${Math.round(100 * value)} %`, title: "Opacity of the heat map" }),
    group(c.toggle("show_points", "Points", "Projected points over the image, coloured by depth, 2 to 80 m (P)"), ...regional),
    group(c.button("clear", "Unpin", "Unpin all queries (Esc)", acts.clear), c.button("png", "PNG", "Save this view as a picture (E)", acts.picture),
      c.button("full", "Full", "Full screen (F)", acts.full), c.button("help", "?", "List of keys (?)", acts.help)),
  ];
  return [first, second].map((parts) => element("div", { className: "xm-bar" }, ...parts));
}

function helpPanel() {
  const lines = KEYS.flatMap(([key, text]) => [element("dt", {}, key), element("dd", {}, text)]);
  return element("div", { className: "xm-help", hidden: true, role: "dialog", "aria-label": "Keys" }, element("b", {}, "Keys"), element("dl", {}, ...lines));
}

function keyActions(model, set, acts) {
  // what each key does; state is the model's
  const flip = (name) => () => set(name, !model.get(name));
  const next = (name, values) => () => {
    const shown = Math.max(values.indexOf(model.get(name)), 0); // a name that is not there shows the first
    if (values.length) set(name, values[(shown + 1) % values.length]);
  };
  const regional = (name) => () => model.get("contents").superpixels && flip(name)();
  return {
    ",": acts.back, ".": acts.ahead, " ": flip("playing"), p: flip("show_points"), s: regional("show_boundaries"), r: regional("regions"),
    m: next("color_map", COLOR_MAPS), c: () => next("camera", acts.cameras())(), x: acts.swap, e: acts.picture, f: acts.full, "?": acts.help,
    t: acts.top, Escape: acts.escape, Backspace: () => set("queries", model.get("queries").slice(0, -1)),
    ...Object.fromEntries(COLOR_BY.map((name, i) => [String(i + 1), () => set("color_by", name)])),
  };
}
