// Packs as xmodal.viz.pack writes them: a header that names arrays, and one block of bytes that holds them.

const ARRAY_KINDS = { u1: Uint8Array, u2: Uint16Array, u4: Uint32Array, i1: Int8Array, i4: Int32Array, f4: Float32Array };

function unpack(header, bytes) {
  // typed arrays need aligned offsets: what arrives at an odd place of a message is moved once
  const whole = bytes.byteOffset % 8 === 0 ? bytes : bytes.slice();
  const arrays = {};
  for (const [name, [kind, shape, offset]] of Object.entries(header.arrays)) {
    const length = shape.reduce((product, side) => product * side, 1);
    arrays[name] = new ARRAY_KINDS[kind](whole.buffer, whole.byteOffset + offset, length);
  }
  return arrays;
}

function fromBase64(text) {
  if (Uint8Array.fromBase64) return Uint8Array.fromBase64(text);
  const letters = atob(text);
  const bytes = new Uint8Array(letters.length);
  for (let i = 0; i < letters.length; i++) bytes[i] = letters.charCodeAt(i);
  return bytes;
}
