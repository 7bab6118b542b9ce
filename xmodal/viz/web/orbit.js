// The virtual camera: an eye that circles a target on a turntable whose axis is z. Metres and radians; screen sizes in CSS pixels.

const ORBIT_LENS = 2 * Math.tan((25 * Math.PI) / 180); // the shorter side of the view sees 50 degrees
const ORBIT_REACH = [0.5, 1000]; // metres between eye and target

class Orbit {
  constructor() {
    this.look("behind", 0);
  }

  // A named view of a LiDAR frame (x forward, y left, z up) whose ground lies at z = `ground`.
  look(name, ground) {
    const eyes = {
      behind: { at: [14, 0, ground], from: [-32, 0, 10 - ground] }, // 18 m behind the sensor, 10 m above it
      top: { at: [6, 0, ground], from: [-1e-9, 0, 75] }, // forward is up
    };
    if (!eyes[name]) throw new RangeError(`look: "${name}" is unknown; choose one of ${Object.keys(eyes).join(", ")}`);
    const [x, y, z] = eyes[name].from;
    this.state = {
      target: eyes[name].at,
      distance: Math.hypot(x, y, z),
      azimuth: Math.atan2(y, x),
      elevation: Math.atan2(z, Math.hypot(x, y)),
    };
  }

  // {target: [x, y, z], distance, azimuth, elevation}: the eye stands `azimuth` from x towards y, `elevation` above the target.
  get state() {
    return { target: [...this.target], distance: this.distance, azimuth: this.azimuth, elevation: this.elevation };
  }

  set state({ target = this.target, distance = this.distance, azimuth = this.azimuth, elevation = this.elevation }) {
    if (![...target, distance, azimuth, elevation].every(Number.isFinite)) return; // one NaN would lose the scene for good
    this.target = Array.from(target);
    this.distance = Math.min(Math.max(distance, ORBIT_REACH[0]), ORBIT_REACH[1]);
    this.azimuth = Math.atan2(Math.sin(azimuth), Math.cos(azimuth));
    this.elevation = Math.min(Math.max(elevation, -Math.PI / 2), Math.PI / 2);
  }

  // Unit vectors to the right, up, and from the target to the eye; defined at the poles too.
  axes() {
    const [ca, sa, ce, se] = [Math.cos(this.azimuth), Math.sin(this.azimuth), Math.cos(this.elevation), Math.sin(this.elevation)];
    return { right: [-sa, ca, 0], up: [-se * ca, -se * sa, ce], back: [ce * ca, ce * sa, se] };
  }

  // Pixels that one metre spans at one metre from the eye.
  focal(width, height) {
    return Math.min(width, height) / ORBIT_LENS;
  }

  // Pixels that one metre spans at the target.
  scale(width, height) {
    return this.focal(width, height) / this.distance;
  }

  // World to clip space, 16 numbers by columns; its w is the depth in metres.
  matrix(width, height) {
    const { right, up, back } = this.axes();
    const far = this.distance + 2000;
    const near = this.near();
    const focal = 2 * this.focal(width, height);
    const rows = [
      this.row(right, focal / width, 0),
      this.row(up, focal / height, 0),
      this.row(back, -(far + near) / (far - near), this.distance).map((v, i) => (i < 3 ? v : v - (2 * far * near) / (far - near))),
      this.row(back, -1, this.distance),
    ];
    return Float32Array.from({ length: 16 }, (_, i) => rows[i % 4][i >> 2]);
  }

  near() {
    return Math.max(0.05, 0.01 * this.distance);
  }

  // One row of the matrix: `gain` times the coordinate along `axis`, measured from `shift` along it beyond the target.
  row(axis, gain, shift) {
    const start = axis[0] * this.target[0] + axis[1] * this.target[1] + axis[2] * this.target[2] + shift;
    return [gain * axis[0], gain * axis[1], gain * axis[2], -gain * start];
  }

  turn(azimuth, elevation) {
    this.state = { azimuth: this.azimuth + azimuth, elevation: this.elevation + elevation };
  }

  // What lies in the target's plane follows the pointer by (dx, dy) pixels; `scale` as above.
  pan(dx, dy, scale) {
    const { right, up } = this.axes();
    this.state = { target: this.target.map((value, i) => value + (up[i] * dy - right[i] * dx) / scale) };
  }

  // Multiplies the distance; what is seen (x, y) pixels right of and below the middle of the view stays there.
  zoom(factor, x, y, scale) {
    const before = this.distance;
    this.state = { distance: before * factor };
    const kept = this.distance / before - 1; // 0 at the ends of the reach
    this.pan(x * kept, y * kept, scale);
  }
}

// The largest of 1, 2, 5, 10, 20, ... metres within `most`.
function orbitRoundLength(most) {
  const power = 10 ** Math.floor(Math.log10(most));
  return power * [5, 2, 1].find((step) => step * power <= most * (1 + 1e-9));
}
