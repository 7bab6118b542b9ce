// Similarity of one direction to many, (1 + cosine) / 2: all that happens between a pointer's move and the colours.

function similarityTo(query, features, scales) {
  // query: unit vector (D); features: (n, D), whole numbers or floats; scales: (n), scale * feature is a unit vector, 0 = it has no direction
  const dim = query.length;
  const out = new Float32Array(scales.length);
  for (let i = 0, k = 0; i < out.length; i++) {
    let dot = 0;
    for (let d = 0; d < dim; d++, k++) dot += query[d] * features[k];
    out[i] = scales[i] ? Math.min(Math.max(0.5 + 0.5 * dot * scales[i], 0), 1) : NaN;
  }
  return out;
}

function vectorAt(row, dim, features, scales) {
  // unit vector (D) of one row, null if it has no direction
  if (!scales[row]) return null;
  return Float32Array.from(features.subarray(row * dim, (row + 1) * dim), (value) => value * scales[row]);
}

function quantiles(arrays, parts) {
  // of values in 0 ... 1, all arrays together, to 1 / 4096; NaN is left out
  const bins = new Uint32Array(4097);
  let total = 0;
  for (const values of arrays) {
    for (let i = 0; i < values.length; i++) {
      if (values[i] >= 0) { bins[(values[i] * 4096) | 0]++; total++; }
    }
  }
  return parts.map((part) => {
    let seen = 0;
    for (let bin = 0; bin < bins.length; bin++) {
      seen += bins[bin];
      if (seen > part * total) return bin / 4096;
    }
    return 1;
  });
}
