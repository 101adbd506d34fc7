"use strict";
const COLORS = {{ colors|tojson }};
const LOWEST = {{ lowest|tojson }};
const ALPHA = 0.45; // of masks
const MAX_PIXELS = 16e6; // of the canvas: browsers on phones show no larger one
const element = (id) => document.getElementById(id);
const view = element("view"), results = element("results"), rows = element("rows");
let shown = null; // { name, image, document, detections, scale }
let hovered = null;
let apiKey = "";
let pending = null; // the file that waits for an API key
let latest = 0; // number of the last request: earlier answers are dropped

const headers = () => (apiKey ? { Authorization: `Bearer ${apiKey}` } : {});

function say(text, error = false) {
  element("status").textContent = text;
  element("status").classList.toggle("error", error);
}

async function failure(response) {
  try {
    return (await response.json()).error;
  } catch {
    return `The server answered with status ${response.status}.`;
  }
}

async function loadInfo() {
  const response = await fetch("info", { headers: headers() });
  element("login").hidden = response.status !== 401;
  if (!response.ok) return;
  const info = await response.json();
  const names = info.classes.map((each) => each.name).join(", ");
  element("model").textContent = `${info.model}: ${names.length > 160 ? `${info.classes.length} classes` : names}`;
}

async function predict(file) {
  const number = ++latest;
  say(`${file.name}: detecting...`);
  let response;
  try {
    response = await fetch(`predict?threshold=${LOWEST}&format=json`, {
      method: "POST", body: file, headers: { ...headers(), "Content-Type": "application/octet-stream" },
    });
  } catch {
    if (number === latest) say("The server cannot be reached.", true);
    return;
  }
  if (number !== latest) return;
  if (!response.ok) {
    if (response.status === 401) { element("login").hidden = false; pending = file; }
    return say(await failure(response), true);
  }
  const coco = await response.json();
  // Some formats, such as TIFF, are read by the server but not by all browsers: then there are masks only.
  const image = await createImageBitmap(file).catch(() => null);
  if (number === latest) show(file.name, image, coco);
}

function show(name, image, coco) {
  const { width, height } = coco.images[0];
  coco.images[0].file_name = name;
  const scale = Math.min(1, Math.sqrt(MAX_PIXELS / (width * height)));
  view.width = Math.max(1, Math.round(width * scale));
  view.height = Math.max(1, Math.round(height * scale));
  const detections = coco.annotations.map((each, index) => ({
    ...each, color: COLORS[index % COLORS.length], runs: each.segmentation && decodeRuns(each.segmentation.counts),
  }));
  shown = { name, image, coco, detections, scale };
  hovered = null;
  view.hidden = results.hidden = false;
  element("drop").classList.add("small");
  const note = image ? "" : " (this browser cannot show the format)";
  say(`${name}: ${width} x ${height} pixels${note}`);
  update();
}

// Run lengths of COCO's compressed RLE: background first, column by column.
function decodeRuns(counts) {
  const runs = [];
  for (let at = 0; at < counts.length; ) {
    let value = 0, shift = 0, code;
    do {
      code = counts.charCodeAt(at++) - 48;
      value |= (code & 31) << shift;
      shift += 5;
    } while (code & 32);
    if (code & 16) value |= -1 << shift;
    runs.push(runs.length > 2 ? value + runs[runs.length - 2] : value);
  }
  return runs;
}

const threshold = () => Number(element("threshold").value);
const selected = () => shown.detections.filter((each) => each.score > threshold());

function update() {
  element("value").textContent = threshold().toFixed(2);
  if (!shown) return;
  const kept = selected();
  const counts = new Map();
  for (const { category } of kept) counts.set(category, (counts.get(category) || 0) + 1);
  const text = [...counts].map(([name, count]) => `${count} ${name}`).join(", ");
  element("summary").textContent = text || "No detections above this score.";
  rows.replaceChildren(...kept.map(row));
  draw(kept);
}

function row(detection) {
  const line = document.createElement("tr");
  const key = document.createElement("span");
  key.className = "key";
  key.style.background = detection.color.fill;
  const cells = [detection.category, detection.score.toFixed(3), detection.area ?? ""].map((text, index) => {
    const cell = document.createElement("td");
    cell.append(...(index ? [] : [key]), String(text));
    if (index) cell.className = "n";
    return cell;
  });
  line.append(...cells);
  line.onmouseenter = () => { hovered = detection; draw(selected()); };
  line.onmouseleave = () => { hovered = null; draw(selected()); };
  return line;
}

function draw(kept) {
  const context = view.getContext("2d");
  context.fillStyle = "#777";
  context.fillRect(0, 0, view.width, view.height);
  if (shown.image) context.drawImage(shown.image, 0, 0, view.width, view.height);
  const drawn = hovered ? [hovered] : kept;
  if (element("masks").checked) {
    const layer = new OffscreenCanvas(view.width, view.height);
    layer.getContext("2d").putImageData(overlay(drawn), 0, 0);
    context.drawImage(layer, 0, 0);
  }
  const unit = Math.max(view.width, view.height) / 800;
  for (const detection of [...drawn].reverse()) annotate(context, detection, unit);
}

// Masks as an image; those with higher scores are above.
function overlay(detections) {
  const { width, height } = view, scale = shown.scale, rows = shown.coco.images[0].height;
  const data = new ImageData(width, height), pixels = new Uint32Array(data.data.buffer);
  for (const { runs, color } of [...detections].reverse()) {
    if (!runs) continue;
    const [r, g, b] = [1, 3, 5].map((at) => parseInt(color.fill.slice(at, at + 2), 16));
    const value = ((Math.round(ALPHA * 255) << 24) | (b << 16) | (g << 8) | r) >>> 0;
    let start = 0;
    runs.forEach((length, index) => {
      const end = start + length;
      while (index % 2 && start < end) {
        const column = Math.floor(start / rows), stop = Math.min(end, (column + 1) * rows);
        const x = Math.floor(column * scale);
        const bottom = Math.min(height, Math.ceil((stop - column * rows) * scale));
        for (let y = Math.floor((start - column * rows) * scale); y < bottom; y++) pixels[y * width + x] = value;
        start = stop;
      }
      start = end;
    });
  }
  return data;
}

function annotate(context, detection, unit) {
  const [x, y, width, height] = detection.bbox.map((each) => each * shown.scale);
  if (element("boxes").checked) {
    context.lineWidth = 2 * unit;
    context.strokeStyle = detection.color.fill;
    context.strokeRect(x, y, width, height);
  }
  if (element("labels").checked) {
    const size = Math.max(11, 13 * unit), text = `${detection.category} ${detection.score.toFixed(2)}`;
    context.font = `600 ${size}px system-ui, sans-serif`;
    const wide = context.measureText(text).width + size / 2, high = 1.35 * size;
    const left = Math.max(0, Math.min(x - unit, view.width - wide)), top = y >= high ? y - high : y;
    context.fillStyle = detection.color.fill;
    context.fillRect(left, top, wide, high);
    context.fillStyle = detection.color.text;
    context.fillText(text, left + size / 4, top + size);
  }
}

function download(blob, suffix) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = shown.name.replace(/\.[^.]*$/, "") + suffix;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

// The COCO document with the selected detections.
function selection() {
  const ids = new Set(selected().map((each) => each.id));
  return { ...shown.coco, annotations: shown.coco.annotations.filter((each) => ids.has(each.id)) };
}

const drop = element("drop");
drop.ondragover = (event) => { event.preventDefault(); drop.classList.add("over"); };
drop.ondragleave = () => drop.classList.remove("over");
drop.ondrop = (event) => {
  event.preventDefault();
  drop.classList.remove("over");
  if (event.dataTransfer.files.length) predict(event.dataTransfer.files[0]);
};
element("file").onchange = ({ target }) => {
  if (target.files.length) predict(target.files[0]);
  target.value = ""; // so that the same file can be chosen again
};
for (const id of ["threshold", "masks", "boxes", "labels"]) element(id).oninput = update;
element("json").onclick = () => download(new Blob([JSON.stringify(selection())], { type: "application/json" }), ".json");
element("png").onclick = () => { hovered = null; draw(selected()); view.toBlob((blob) => download(blob, ".png")); };
element("theme").onclick = () => {
  const root = document.documentElement, dark = matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = (root.dataset.theme || (dark ? "dark" : "light")) === "dark" ? "light" : "dark";
};
element("login").onsubmit = async (event) => {
  event.preventDefault();
  apiKey = element("key").value.trim();
  await loadInfo();
  if (pending && element("login").hidden) predict(pending);
  pending = null;
};
update();
loadInfo().catch(() => say("The server cannot be reached.", true));
