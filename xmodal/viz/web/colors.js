// Values to colours: colour maps for one query, one hue a query for several.

const PIN_COLORS = ["#35e0ff", "#ffb000", "#ff6fae", "#5b7cff", "#ffe98a", "#ff5a36"]; // told apart with any kind of colour blindness
const NO_VALUE = [74, 82, 92]; // grey of points without a feature, a label, a region
const BELOW = [44, 51, 60]; // of points under the threshold

function hexToRgb(hex) {
  return [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16));
}

function lookupTable(hex) {
  // 256 colours written one after the other -> Uint8Array (768)
  return Uint8Array.from({ length: hex.length / 2 }, (_, i) => parseInt(hex.slice(2 * i, 2 * i + 2), 16));
}

function cssGradient(table) {
  const stops = Array.from({ length: 9 }, (_, i) => Math.round((i * 255) / 8) * 3);
  return `linear-gradient(to right, ${stops.map((k) => `rgb(${table[k]} ${table[k + 1]} ${table[k + 2]})`).join(", ")})`;
}

function paintValues(values, low, high, table, log = false) {
  // (n) -> RGBA (4n): a colour map from `low` to `high`
  const out = new Uint8Array(values.length * 4);
  const shape = log ? Math.log : (value) => value;
  const [start, gain] = [shape(low), 255 / (shape(high) - shape(low) || 1)];
  for (let i = 0; i < values.length; i++) {
    const level = 3 * Math.min(Math.max(Math.round((shape(values[i]) - start) * gain), 0), 255);
    out.set([table[level], table[level + 1], table[level + 2], 255], 4 * i);
  }
  return out;
}

function paintRgb(rgb) {
  const out = new Uint8Array((rgb.length / 3) * 4).fill(255);
  for (let i = 0, k = 0; k < rgb.length; i += 4, k += 3) { out[i] = rgb[k]; out[i + 1] = rgb[k + 1]; out[i + 2] = rgb[k + 2]; }
  return out;
}

function paintLabels(labels, palette) {
  const out = new Uint8Array(labels.length * 4);
  for (let i = 0; i < labels.length; i++) out.set([...(palette[labels[i]] ?? NO_VALUE), 255], 4 * i);
  return out;
}

function paintAnswers(answers, pins, { low, high, threshold, table, heat }) {
  // answers: one Float32Array of similarities a query; the most similar query wins. heat: alpha grows with similarity
  const count = answers[0].length;
  const out = new Uint8Array(count * 4);
  const gain = 255 / Math.max(high - low, 1e-6);
  const hues = answers.length > 1 ? pins.map(hexToRgb) : null;
  for (let i = 0, k = 0; i < count; i++, k += 4) {
    let best = answers[0][i];
    let winner = 0;
    for (let q = 1; q < answers.length; q++) if (!(answers[q][i] <= best)) { best = answers[q][i]; winner = q; }
    if (!(best >= threshold)) {
      const grey = best < threshold ? BELOW : NO_VALUE;
      out[k] = grey[0]; out[k + 1] = grey[1]; out[k + 2] = grey[2]; out[k + 3] = heat ? 0 : 255;
      continue;
    }
    const level = Math.min(Math.max(Math.round((best - low) * gain), 0), 255);
    if (hues) {
      const shade = 0.16 + (0.84 * level) / 255;
      for (let c = 0; c < 3; c++) out[k + c] = hues[winner][c] * shade;
    } else {
      for (let c = 0; c < 3; c++) out[k + c] = table[3 * level + c];
    }
    out[k + 3] = heat ? 20 + 0.86 * level : 255;
  }
  return out;
}
