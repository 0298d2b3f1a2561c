// Pictures that were chosen, dropped or pasted: files to data URLs that the server reads, and their tiles drawn over
// them. What the server would refuse is said here, before anything is sent; what a browser can turn into something that
// the server reads is turned.

import { el, svg } from "./dom.js";
import { chooseGrid, fittedSize, pictureTokens } from "./tiles.js";

const READ_AS_IS = new Set(["image/png", "image/jpeg", "image/webp", "image/gif"]);

/** Returns { name, url, width, height, note } for a file. Raises an Error with a message for people. */
export async function readPicture(file, limits) {
  const name = file.name || "pasted picture";
  const shown = await decode(file, name);
  const { naturalWidth: width, naturalHeight: height } = shown;
  const scale = Math.min(1, Math.sqrt(limits.max_image_pixels / (width * height)));
  if (scale === 1 && READ_AS_IS.has(file.type) && file.size <= limits.max_image_bytes)
    return { name, url: await dataUrl(file), width, height, note: "" };
  const size = [width, height].map((side) => Math.max(1, Math.floor(side * scale)));
  const blob = await redraw(shown, ...size);
  if (blob.size > limits.max_image_bytes) throw new Error(`${name} is too large for this server.`);
  const note = scale < 1 ? `made smaller, from ${width} × ${height}` : "sent as PNG";
  return { name, url: await dataUrl(blob), width: size[0], height: size[1], note };
}

/** Returns the picture on its canvas of tiles, as the model sees it; a caption says what it takes. */
export function drawTiles(picture, vision) {
  const label = describe(picture, vision);
  if (!vision) return el("figure", { class: "picture" }, el("img", { src: picture.url, alt: picture.name }));
  const { tile_size: side, max_tiles: maxTiles } = vision;
  const grid = chooseGrid(picture.width, picture.height, side, maxTiles);
  const [width, height] = fittedSize(picture.width, picture.height, grid, side);
  const [across, down] = [grid.columns * side, grid.rows * side];
  const lines = [
    ...inner(grid.columns).map((i) => ({ x1: i * side, x2: i * side, y1: 0, y2: down })),
    ...inner(grid.rows).map((i) => ({ x1: 0, x2: across, y1: i * side, y2: i * side })),
  ];
  const drawn = svg(
    "svg",
    { viewBox: `0 0 ${across} ${down}`, role: "img", "aria-label": `${picture.name}: ${label}` },
    svg("image", { href: picture.url, width, height, preserveAspectRatio: "none" }),
    svg("rect", { class: "picture-rest", x: width, width: across - width, height: down }),
    svg("rect", { class: "picture-rest", y: height, width, height: down - height }),
    lines.map((ends) => svg("line", { class: "picture-cut", ...ends })),
  );
  const caption = el("figcaption", {}, el("span", { class: "picture-name" }, picture.name), el("span", {}, label));
  const figure = el("figure", { class: "picture" }, drawn, caption);
  figure.style.setProperty("--ratio", String(across / down));
  return figure;
}

function describe({ width, height, note }, vision) {
  if (!vision) return "this model reads no pictures";
  const { rows, columns } = chooseGrid(width, height, vision.tile_size, vision.max_tiles);
  const cut = rows * columns === 1 ? "1 tile" : `${columns} × ${rows} tiles + whole`;
  const tokens = `${pictureTokens({ rows, columns }, vision.tokens_per_tile)} tokens`;
  return [cut, tokens, note].filter(Boolean).join(" · ");
}

function inner(n) {
  return Array.from({ length: n - 1 }, (_, i) => i + 1);
}

async function decode(file, name) {
  const image = new Image();
  image.src = URL.createObjectURL(file);
  try {
    await image.decode();
  } catch {
    throw new Error(`${name} is no picture that this browser can read.`);
  } finally {
    URL.revokeObjectURL(image.src);
  }
  if (!image.naturalWidth || !image.naturalHeight) throw new Error(`${name} has no size of its own.`);
  return image;
}

async function redraw(image, width, height) {
  const canvas = new OffscreenCanvas(width, height);
  const drawing = canvas.getContext("2d");
  drawing.imageSmoothingQuality = "high";
  drawing.drawImage(image, 0, 0, width, height);
  return canvas.convertToBlob({ type: "image/png" });
}

function dataUrl(blob) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(new Error("The picture could not be read."));
    reader.readAsDataURL(blob);
  });
}
