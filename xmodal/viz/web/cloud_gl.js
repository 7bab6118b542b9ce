// The graphics card's part of the cloud: points sized by distance, and a grid on the ground below them.

const CLOUD_LOOK = { ground: "#0d1117", line: "#39424e", ink: "#f0f3f6", muted: "#9aa4b0", mark: "#35e0ff" };
const CLOUD_AXES = { x: "#ff8c5a", y: "#5fd38d", z: "#7cb7ff" }; // forward, left, up
const CLOUD_RINGS = [10, 20, 30, 40, 60, 80, 100]; // metres
const CLOUD_GRID = 120; // metres from the sensor to the end of the grid

const CLOUD_POINTS_VERTEX = `#version 300 es
uniform mat4 u_view;
uniform vec3 u_ground;
uniform vec2 u_dot; // device pixels at 1 m, smallest
layout(location = 0) in vec3 a_position;
layout(location = 1) in vec4 a_color;
flat out vec4 v_color; // its alpha says whether the dot is worth rounding
void main() {
  gl_Position = a_color.a > 0.0 ? u_view * vec4(a_position, 1.0) : vec4(2.0, 2.0, 2.0, 1.0);
  gl_PointSize = clamp(u_dot.x / gl_Position.w, u_dot.y, 12.0);
  v_color = vec4(mix(u_ground, a_color.rgb, a_color.a), step(3.0, gl_PointSize));
}`;

const CLOUD_POINTS_FRAGMENT = `#version 300 es
precision mediump float;
flat in vec4 v_color;
out vec4 color;
void main() {
  vec2 away = gl_PointCoord - 0.5;
  if (dot(away, away) * v_color.a > 0.25) discard;
  color = vec4(v_color.rgb, 1.0);
}`;

// A line is two triangles as wide as the line and its soft edge; ends behind the eye are cut off first.
// Six vertices with the same attributes, not one instance of four: in software every instance costs as much as a draw call.
const CLOUD_LINES_VERTEX = `#version 300 es
uniform mat4 u_view;
uniform vec2 u_size; // device pixels of the viewport
uniform vec4 u_line; // z of the ground, nearest depth, device pixels per CSS pixel, depth at which 10 m shrink to one pixel, squared
layout(location = 0) in vec4 a_ends; // x y, x y
layout(location = 1) in vec4 a_color;
layout(location = 2) in float a_width; // CSS pixels
const int CORNERS[6] = int[6](0, 1, 2, 2, 1, 3); // bit 0: the side, bit 1: the end
out vec4 v_color;
out float v_across;
flat out float v_half;
void main() {
  vec4 a = u_view * vec4(a_ends.xy, u_line.x, 1.0), b = u_view * vec4(a_ends.zw, u_line.x, 1.0);
  v_color = vec4(0.0);
  v_across = 0.0;
  v_half = 0.5 * a_width * u_line.z;
  gl_Position = vec4(2.0, 2.0, 2.0, 1.0);
  if (max(a.w, b.w) <= u_line.y) return;
  vec4 from = a.w < u_line.y ? mix(a, b, (u_line.y - a.w) / (b.w - a.w)) : a;
  vec4 to = b.w < u_line.y ? mix(b, a, (u_line.y - b.w) / (a.w - b.w)) : b;
  vec2 along = (to.xy / to.w - from.xy / from.w) * u_size;
  vec2 normal = vec2(-along.y, along.x) / max(length(along), 1e-6);
  int corner = CORNERS[gl_VertexID % 6];
  vec4 at = corner < 2 ? from : to;
  v_across = (v_half + 1.0) * float(2 * (corner & 1) - 1);
  float range = length(corner < 2 ? a_ends.xy : a_ends.zw);
  float fade = (1.0 - smoothstep(60.0, ${CLOUD_GRID}.0, range)) * clamp(u_line.w / (at.w * at.w) / 8.0, 0.0, 1.0);
  v_color = vec4(a_color.rgb, a_color.a * fade);
  gl_Position = at + vec4(normal * v_across * 2.0 / u_size * at.w, 0.0, 0.0);
}`;

const CLOUD_LINES_FRAGMENT = `#version 300 es
precision mediump float;
in vec4 v_color;
in float v_across;
flat in float v_half;
out vec4 color;
void main() {
  color = vec4(v_color.rgb, v_color.a * clamp(v_half + 0.5 - abs(v_across), 0.0, 1.0));
}`;

// "#rrggbb" -> three numbers from 0 to 1
function cloudRgb(hex) {
  return [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16) / 255);
}

// The lines on the ground, six times nine numbers each: both ends, colour and opacity, width.
function cloudGroundLines() {
  const lines = [];
  const add = (ends, color, alpha, width) => {
    for (let corner = 0; corner < 6; corner++) lines.push(...ends, ...cloudRgb(color), alpha, width);
  };
  for (let a = -CLOUD_GRID; a <= CLOUD_GRID; a += 10) {
    for (let b = -CLOUD_GRID; b < CLOUD_GRID; b += 10) { // short pieces, so that they can fade
      add([b, a, b + 10, a], CLOUD_LOOK.line, a ? 0.55 : 1, a ? 1 : 1.5);
      add([a, b, a, b + 10], CLOUD_LOOK.line, a ? 0.55 : 1, a ? 1 : 1.5);
    }
  }
  for (const radius of CLOUD_RINGS) {
    const corner = (i) => [radius * Math.cos((i * Math.PI) / 60), radius * Math.sin((i * Math.PI) / 60)];
    for (let i = 0; i < 120; i++) add([...corner(i), ...corner(i + 1)], "#4b5563", 1, 1.25);
  }
  add([0, 0, 3, 0], CLOUD_AXES.x, 1, 2);
  add([0, 0, 0, 3], CLOUD_AXES.y, 1, 2);
  return new Float32Array(lines);
}

function cloudProgram(gl, vertex, fragment) {
  const program = gl.createProgram();
  for (const [type, source] of [[gl.VERTEX_SHADER, vertex], [gl.FRAGMENT_SHADER, fragment]]) {
    const shader = gl.createShader(type);
    gl.shaderSource(shader, source);
    gl.compileShader(shader);
    gl.attachShader(program, shader);
  }
  gl.linkProgram(program);
  if (!gl.getProgramParameter(program, gl.LINK_STATUS) && !gl.isContextLost()) throw new Error(gl.getProgramInfoLog(program));
  const at = (name) => gl.getUniformLocation(program, name);
  return { program, view: at("u_view"), ground: at("u_ground"), dot: at("u_dot"), size: at("u_size"), line: at("u_line") };
}

// What lives on the graphics card; made anew when the card has forgotten it.
class CloudScene {
  constructor(gl) {
    this.gl = gl;
    this.points = cloudProgram(gl, CLOUD_POINTS_VERTEX, CLOUD_POINTS_FRAGMENT);
    this.lines = cloudProgram(gl, CLOUD_LINES_VERTEX, CLOUD_LINES_FRAGMENT);
    this.positions = gl.createBuffer();
    this.colors = [gl.createBuffer(), gl.createBuffer()];
    this.sides = this.colors.map((colors) => this.layout([[this.positions, 3, gl.FLOAT], [colors, 4, gl.UNSIGNED_BYTE]]));
    this.groundLayout();
    gl.clearColor(...cloudRgb(CLOUD_LOOK.ground), 1);
    gl.blendFunc(gl.SRC_ALPHA, gl.ONE_MINUS_SRC_ALPHA);
    gl.enable(gl.SCISSOR_TEST); // dots at the edge of one side would reach into the other
  }

  // A vertex array that reads attribute i from attributes[i] = [buffer, numbers, type].
  layout(attributes) {
    const gl = this.gl;
    const array = gl.createVertexArray();
    gl.bindVertexArray(array);
    attributes.forEach(([buffer, numbers, type], i) => {
      gl.bindBuffer(gl.ARRAY_BUFFER, buffer);
      gl.enableVertexAttribArray(i);
      gl.vertexAttribPointer(i, numbers, type, type === gl.UNSIGNED_BYTE, 0, 0);
    });
    return array;
  }

  groundLayout() {
    const gl = this.gl;
    const lines = cloudGroundLines();
    this.lineVertices = lines.length / 9;
    this.groundArray = gl.createVertexArray();
    gl.bindVertexArray(this.groundArray);
    this.upload(gl.createBuffer(), lines);
    [[4, 0], [4, 16], [1, 32]].forEach(([numbers, offset], i) => {
      gl.enableVertexAttribArray(i);
      gl.vertexAttribPointer(i, numbers, gl.FLOAT, false, 36, offset);
    });
  }

  upload(buffer, array) {
    this.gl.bindBuffer(this.gl.ARRAY_BUFFER, buffer);
    this.gl.bufferData(this.gl.ARRAY_BUFFER, array, this.gl.DYNAMIC_DRAW); // the buffer's old memory is given back
  }

  // One side into the columns [left, right) of the canvas; `camera` from CloudView.camera.
  draw(side, left, right, count, camera) {
    const gl = this.gl;
    const height = gl.drawingBufferHeight;
    gl.viewport(left, 0, right - left, height);
    gl.scissor(left, 0, right - left, height);
    gl.clear(gl.COLOR_BUFFER_BIT | gl.DEPTH_BUFFER_BIT);
    this.drawGround(right - left, height, camera);
    gl.enable(gl.DEPTH_TEST);
    gl.useProgram(this.points.program);
    gl.uniformMatrix4fv(this.points.view, false, camera.matrix);
    gl.uniform3fv(this.points.ground, cloudRgb(CLOUD_LOOK.ground));
    gl.uniform2f(this.points.dot, 20 * camera.pointSize * camera.ratio, Math.max(1, camera.ratio));
    gl.bindVertexArray(this.sides[side]);
    gl.drawArrays(gl.POINTS, 0, count);
  }

  // Below the points, whatever their depth: the grid never covers a colour.
  drawGround(width, height, camera) {
    const gl = this.gl;
    gl.disable(gl.DEPTH_TEST);
    gl.enable(gl.BLEND);
    gl.useProgram(this.lines.program);
    gl.uniformMatrix4fv(this.lines.view, false, camera.matrix);
    gl.uniform2f(this.lines.size, width, height);
    gl.uniform4f(this.lines.line, camera.ground, camera.near, camera.ratio, camera.crowding);
    gl.bindVertexArray(this.groundArray);
    gl.drawArrays(gl.TRIANGLES, 0, this.lineVertices);
    gl.disable(gl.BLEND);
  }
}
