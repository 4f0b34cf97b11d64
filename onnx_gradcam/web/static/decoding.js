// Decodes image files. The size is read from the header first, as a small file may contain a huge image.

const MAX_BYTES = 2 ** 27;
const MAX_PIXELS = 2 ** 26;
const STRIP = 512;
// The stored pixels: no colour profile, no premultiplied alpha; the EXIF orientation is applied.
const AS_STORED = { premultiplyAlpha: "none", colorSpaceConversion: "none", imageOrientation: "from-image" };

/**
 * Decode an image; transparency is dropped.
 * @param {File} file
 * @returns {Promise<import("./resizing.js").Image>} RGB.
 */
export async function decode(file) {
  if (file.size > MAX_BYTES) {
    throw new Error(`${file.name} is larger than ${MAX_BYTES >> 20} MB: choose a smaller image.`);
  }
  const size = storedSize(new DataView(await readable(file)));
  if (size === null) throw new Error(`${file.name} is not an image: choose a JPEG, PNG, WebP, GIF or BMP file.`);
  if (size[0] * size[1] > MAX_PIXELS) {
    throw new Error(`${file.name} has ${size[0]} x ${size[1]} pixels, too many: choose one of at most 67 million.`);
  }
  let bitmap;
  try {
    bitmap = await createImageBitmap(file, AS_STORED);
  } catch {
    throw new Error(`${file.name} is damaged, or in a format that this browser does not support.`);
  }
  try {
    return pixelsOf(bitmap, file.name);
  } finally {
    bitmap.close();
  }
}

async function readable(file) {
  try {
    return await file.arrayBuffer();
  } catch {
    throw new Error(`${file.name} cannot be read: it may be a folder, or have been moved.`);
  }
}

/** [width, height] from the header; null if the format is unknown. */
export function storedSize(view) {
  const text = (at, length) =>
    at + length <= view.byteLength
      ? String.fromCharCode(...new Uint8Array(view.buffer, view.byteOffset + at, length))
      : "";
  try {
    if (text(0, 4) === "\x89PNG") return [view.getUint32(16), view.getUint32(20)];
    if (text(0, 4) === "GIF8") return [view.getUint16(6, true), view.getUint16(8, true)];
    if (text(0, 2) === "BM") return [view.getInt32(18, true), Math.abs(view.getInt32(22, true))];
    if (text(0, 4) === "RIFF" && text(8, 4) === "WEBP") return webpSize(view, text(12, 4));
    if (text(0, 3) === "\xff\xd8\xff") return jpegSize(view);
  } catch (error) {
    if (!(error instanceof RangeError)) throw error; // the file ends within its header
  }
  return null;
}

function webpSize(view, kind) {
  const three = (at) => 1 + (view.getUint16(at, true) | (view.getUint8(at + 2) << 16));
  if (kind === "VP8X") return [three(24), three(27)];
  if (kind === "VP8 ") return [view.getUint16(26, true) & 0x3fff, view.getUint16(28, true) & 0x3fff];
  const bits = view.getUint32(21, true);
  return kind === "VP8L" ? [1 + (bits & 0x3fff), 1 + ((bits >>> 14) & 0x3fff)] : null;
}

function jpegSize(view) {
  for (let at = 2; ; ) {
    if (view.getUint8(at) !== 0xff) return null;
    const marker = view.getUint8(at + 1);
    const frame = marker >= 0xc0 && marker <= 0xcf && ![0xc4, 0xc8, 0xcc].includes(marker);
    if (frame) return [view.getUint16(at + 7), view.getUint16(at + 5)];
    at += marker === 0xff ? 1 : 2 + view.getUint16(at + 2);
  }
}

/** Read the pixels in strips, as canvases on phones are small. */
function pixelsOf(bitmap, name) {
  const { width, height } = bitmap;
  const data = new Uint8Array(width * height * 3);
  const canvas = new OffscreenCanvas(width, Math.min(STRIP, height));
  const context = canvas.getContext("2d", { willReadFrequently: true });
  if (context === null) throw new Error(`${name} cannot be drawn in this browser: choose a smaller image.`);
  for (let top = 0; top < height; top += STRIP) {
    const rows = Math.min(STRIP, height - top);
    context.clearRect(0, 0, width, STRIP);
    context.drawImage(bitmap, 0, -top);
    if (!withoutAlpha(context.getImageData(0, 0, width, rows).data, data, top * width * 3)) {
      return storedPixels(bitmap, name);
    }
  }
  return { data, height, width, channels: 3 };
}

/** Copy red, green and blue; returns false at the first transparent pixel. */
function withoutAlpha(rgba, rgb, at) {
  for (let i = 0; i < rgba.length; i += 4, at += 3) {
    if (rgba[i + 3] !== 255) return false;
    rgb[at] = rgba[i];
    rgb[at + 1] = rgba[i + 1];
    rgb[at + 2] = rgba[i + 2];
  }
  return true;
}

/** Read pixels through a texture, which keeps the colours of transparent pixels, unlike a canvas. */
function storedPixels(bitmap, name) {
  const { width, height } = bitmap;
  const gl = new OffscreenCanvas(1, 1).getContext("webgl");
  if (gl === null || Math.max(width, height) > gl.getParameter(gl.MAX_TEXTURE_SIZE)) {
    throw new Error(`${name} has transparent parts, which this browser cannot read: save it without transparency.`);
  }
  gl.bindTexture(gl.TEXTURE_2D, gl.createTexture());
  gl.pixelStorei(gl.UNPACK_PREMULTIPLY_ALPHA_WEBGL, false);
  gl.pixelStorei(gl.UNPACK_COLORSPACE_CONVERSION_WEBGL, gl.NONE);
  gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGBA, gl.RGBA, gl.UNSIGNED_BYTE, bitmap);
  gl.bindFramebuffer(gl.FRAMEBUFFER, gl.createFramebuffer());
  gl.framebufferTexture2D(gl.FRAMEBUFFER, gl.COLOR_ATTACHMENT0, gl.TEXTURE_2D, gl.getParameter(gl.TEXTURE_BINDING_2D), 0);
  const rgba = new Uint8Array(width * height * 4);
  gl.readPixels(0, 0, width, height, gl.RGBA, gl.UNSIGNED_BYTE, rgba);
  const failed = gl.getError() !== gl.NO_ERROR;
  gl.getExtension("WEBGL_lose_context")?.loseContext();
  if (failed) throw new Error(`${name} has transparent parts, which could not be read: save it without transparency.`);
  const data = new Uint8Array(width * height * 3);
  for (let i = 0, at = 0; i < rgba.length; i += 4, at += 3) {
    data[at] = rgba[i];
    data[at + 1] = rgba[i + 1];
    data[at + 2] = rgba[i + 2];
  }
  return { data, height, width, channels: 3 };
}
