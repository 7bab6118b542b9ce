// What the cloud and the images are painted with, and the legend that says what the colours mean.

const AUTO = [0.3, 0.999]; // quantiles of all similarities at which the colours end

function rangeOf(answers, model) {
  if (!answers.length || !model.get("auto_range")) return [model.get("low"), model.get("high")];
  const [low, high] = quantiles(answers.flatMap(({ points, pixels }) => [points, ...pixels.map(({ values }) => values)]), AUTO);
  return [Math.min(low, high - 0.02), high];
}

function lacking(by, scene, features) {
  // what cannot be shown of this frame is coloured by height
  return { intensity: !scene.intensity, label: !scene.label, pca: !features?.pca }[by] ?? false;
}

function plainColors(by, scene, features, tables) {
  // RGBA (4n) of colours that need no question
  if (by === "range") return paintValues((scene.ranges ??= rangesOf(scene)), 2, 80, tables.depth, true);
  if (by === "camera") return paintRgb(scene.rgb);
  if (!lacking(by, scene, features)) {
    if (by === "intensity") return paintValues(scene.intensity, 0, 255, tables.magma);
    if (by === "label") return paintLabels(scene.label, scene.class_colors);
    if (by === "pca") return paintRgb(features.pca);
  }
  return paintValues((scene.heights ??= heightsOf(scene)), 0, 6, tables.cividis);
}

function cloudColors(by, scene, { answers, range: [low, high], features }, style, tables) {
  if (by !== "similarity" || !answers.length) return plainColors(by, scene, features, tables);
  return paintAnswers(answers.map(({ points }) => points), answers.map(({ color }) => color), { ...style, low, high });
}

function rangesOf({ points, count }) {
  return Float32Array.from({ length: count }, (_, i) => Math.hypot(points[3 * i], points[3 * i + 1], points[3 * i + 2]));
}

function heightsOf({ points, count, ground }) {
  return Float32Array.from({ length: count }, (_, i) => points[3 * i + 2] - ground);
}

function heatOf(side, camera, by, style) {
  // {rgba, w, h} to lay over an image, null if there is nothing to say
  const grid = side.features?.grids[camera];
  if (by === "pca" && grid) return { rgba: paintRgb(grid.pca), w: grid.w, h: grid.h };
  const cells = side.answers.map(({ pixels }) => pixels[camera]);
  if (!cells.length) return null;
  const [low, high] = side.range;
  return { rgba: paintAnswers(cells.map(({ values }) => values), side.answers.map(({ color }) => color), { ...style, low, high, heat: true }), w: cells[0].w, h: cells[0].h };
}

// --- the legend ---

function legendOf(by, scene, sides, tables, map) {
  const parts = [];
  const lacks = lacking(by, scene, sides[0].features);
  const asked = Math.max(...sides.map(({ answers }) => answers.length));
  if (lacks) parts.push(element("span", {}, `this frame has no ${by === "pca" ? "features" : by}, coloured by height:`));
  if (by === "similarity" && asked) return asked > 1 ? [] : sides.map((side) => similarityBar(side, sides.length > 1, tables[map]));
  if (by === "label" && !lacks) return classDots(scene);
  if (by === "range") parts.push(colorBar(tables.depth, "2 m", "80 m"));
  else if (by === "intensity" && !lacks) parts.push(colorBar(tables.magma, "intensity 0", "1"));
  else if (lacks || by === "height" || by === "similarity") parts.push(colorBar(tables.cividis, "ground", "6 m above"));
  return parts;
}

function similarityBar({ network, range: [low, high] }, named, table) {
  return colorBar(table, `${named ? network : "similarity"}  ${low.toFixed(2)}`, high.toFixed(2));
}

function colorBar(table, from, to) {
  const strip = element("i");
  strip.style.background = cssGradient(table);
  return element("span", { className: "xm-scale" }, from, strip, to);
}

function classDots({ label, classes, class_colors }) {
  return [...new Set(label)].sort((a, b) => a - b).map((id) => {
    const dot = element("i");
    dot.style.background = `rgb(${(class_colors[id] ?? NO_VALUE).join(" ")})`;
    return element("span", {}, dot, classes[id] ?? `class ${id}`);
  });
}

// --- a picture of all views ---

function montage(columns, cloud) {
  // columns of image canvases, as wide as all columns together the cloud under them
  const width = Math.max(cloud.width, ...columns.map((images) => columns.length * Math.max(...images.map((image) => image.width), 0)));
  const side = width / columns.length;
  const tall = (image) => (image.height * side) / image.width;
  const top = Math.max(0, ...columns.map((images) => images.reduce((sum, image) => sum + tall(image), 0)));
  const below = (cloud.height * width) / cloud.width;
  const page = element("canvas", { width, height: Math.round(top + below) });
  const ctx = page.getContext("2d");
  columns.forEach((images, c) => images.reduce((y, image) => {
    ctx.drawImage(image, c * side, y, side, tall(image));
    return y + tall(image);
  }, 0));
  ctx.drawImage(cloud, 0, top, width, below);
  return page;
}
