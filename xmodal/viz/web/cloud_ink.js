// What is written and marked above the cloud, on a 2D canvas: text, rings, axes, the scale bar.

const CLOUD_FONT = "system-ui, -apple-system, 'Segoe UI', sans-serif";

// x, y in a pane of this size and the depth, or null behind the eye or outside the pane
function cloudProject(matrix, [x, y, z], width, height) {
  const [cx, cy, , cw] = [0, 1, 2, 3].map((i) => matrix[i] * x + matrix[i + 4] * y + matrix[i + 8] * z + matrix[i + 12]);
  if (!(cw > 0) || !(Math.abs(cx) <= cw) || !(Math.abs(cy) <= cw)) return null;
  return [(0.5 + (0.5 * cx) / cw) * width, (0.5 - (0.5 * cy) / cw) * height, cw];
}

// Letters with a dark seam, readable on any points.
function cloudText(ctx, text, x, y, { color = CLOUD_LOOK.ink, font = "12px", align = "left", base = "middle" } = {}) {
  Object.assign(ctx, { font: `${font} ${CLOUD_FONT}`, textAlign: align, textBaseline: base, lineJoin: "round" });
  Object.assign(ctx, { lineWidth: 4, strokeStyle: CLOUD_LOOK.ground, fillStyle: color });
  ctx.strokeText(text, x, y);
  ctx.fillText(text, x, y);
}

// A path in `color` on a wider dark one.
function cloudStroke(ctx, color, width, path) {
  ctx.beginPath();
  path();
  ctx.lineCap = "round";
  for (const [style, thick] of [[CLOUD_LOOK.ground, width + 3], [color, width]]) {
    Object.assign(ctx, { strokeStyle: style, lineWidth: thick });
    ctx.stroke();
  }
}

function cloudRing(ctx, [x, y], radius, color) {
  cloudStroke(ctx, color, 2, () => ctx.arc(x, y, radius, 0, 2 * Math.PI));
}

// The axes as the virtual camera sees them; what points away from the eye is drawn first.
function cloudGizmo(ctx, orbit, x, y) {
  const { right, up, back } = orbit.axes();
  for (const i of [0, 1, 2].sort((a, b) => back[a] - back[b])) {
    const name = "xyz"[i];
    const tip = [x + 24 * right[i], y - 24 * up[i]];
    cloudStroke(ctx, CLOUD_AXES[name], 2, () => (ctx.moveTo(x, y), ctx.lineTo(...tip)));
    cloudText(ctx, name, x + 34 * right[i], y - 34 * up[i], { color: CLOUD_AXES[name], font: "600 12px", align: "center" });
  }
}

// A length that ends at x and is true for what is as far away as the target.
function cloudScaleBar(ctx, scale, x, y) {
  const metres = orbitRoundLength(130 / scale);
  const start = x - metres * scale;
  const bar = () => (ctx.moveTo(start, y - 5), ctx.lineTo(start, y), ctx.lineTo(x, y), ctx.lineTo(x, y - 5));
  cloudStroke(ctx, CLOUD_LOOK.ink, 1.5, bar);
  cloudText(ctx, `${metres} m`, (start + x) / 2, y - 11, { align: "center" });
}
