// The explorer of contrastive matrices: one plain module, nothing built, nothing fetched.
//
// `explore` draws into an element; it needs the description of the explorer, its bytes, and a model with
// get, set, save_changes and on. `render` and `initialize` serve the live widget, `openPage` serves the page:
// the same code runs in both, only the model differs.

const TOP = 5;
const CALM = 150; // milliseconds of rest before a cell is announced
const MARKED = 5; // pixels a cell needs to be framed; smaller ones are filled
const THUMB = 20; // pixels a row needs to show its picture

// ---- bytes -------------------------------------------------------------------------------------------------

// Piece by piece into one array of the right size: nothing large is ever there twice.
async function inflate(pieces, about) {
  const widths = { u1: 1, u2: 2 };
  const ends = Object.values(about.arrays).map(([kind, offset, length]) => offset + widths[kind] * length);
  for (const [offset, length] of about.pictures || []) ends.push(offset + length);
  const out = new Uint8Array(8 * Math.ceil(ends.reduce((a, b) => Math.max(a, b), 0) / 8));
  const { readable, writable } = new DecompressionStream("deflate");
  const writer = writable.getWriter();
  (async () => {
    for (const piece of pieces) await writer.write(piece);
    await writer.close();
  })().catch(() => {}); // the reader hears of it too
  const reader = readable.getReader();
  for (let at = 0; ;) {
    const { done, value } = await reader.read();
    if (done) return out;
    out.set(value, at);
    at += value.length;
  }
}

function* fromBase64(text) {
  const step = 1 << 18; // letters at a time
  let kept = "";
  for (let from = 0; from < text.length; from += step) {
    kept += text.slice(from, from + step).replaceAll(" ", "");
    const whole = from + step < text.length ? kept.length - (kept.length % 4) : kept.length;
    const letters = atob(kept.slice(0, whole));
    kept = kept.slice(whole);
    const bytes = new Uint8Array(letters.length);
    for (let i = 0; i < letters.length; i++) bytes[i] = letters.charCodeAt(i);
    yield bytes;
  }
}

function views(about, bytes) {
  const kinds = { u1: Uint8Array, u2: Uint16Array };
  return Object.fromEntries(
    Object.entries(about.arrays).map(([name, [kind, offset, length]]) => [
      name,
      new kinds[kind](bytes.buffer, bytes.byteOffset + offset, length),
    ]),
  );
}

// A table of 256 colours as RGBA words, opaque, in the byte order of this machine.
function words(table) {
  const out = new Uint32Array(256);
  const bytes = new Uint8Array(out.buffer);
  for (let i = 0; i < 256; i++) bytes.set([table[3 * i], table[3 * i + 1], table[3 * i + 2], 255], 4 * i);
  return out;
}

// ---- small helpers -----------------------------------------------------------------------------------------

const clamp = (x, low, high) => Math.min(high, Math.max(low, x));
const same = (a, b) => (a === b) || (!!a && !!b && a[0] === b[0] && a[1] === b[1]);

function make(tag, name, parent, text) {
  const node = document.createElement(tag);
  if (name) node.className = name;
  if (text !== undefined) node.textContent = text;
  if (parent) parent.append(node);
  return node;
}

function share(p, about) {
  const word = p >= 0.9995 ? "100 %" : p >= 0.0995 ? `${(100 * p).toFixed(0)} %` : p >= 0.0005 ? `${(100 * p).toFixed(1)} %` : "< 0.1 %";
  return about && !word.startsWith("<") ? `≈ ${word}` : word;
}

// ---- light and dark ----------------------------------------------------------------------------------------

function followTheme(root, changed) {
  const bodies = [document.body];
  try {
    if (window.parent !== window) bodies.push(window.parent.document.body);
  } catch { /* a page of somebody else */ }
  const prefers = window.matchMedia("(prefers-color-scheme: dark)");
  const update = () => {
    const said = bodies.map((body) => body?.dataset.jpThemeLight).find((value) => value !== undefined);
    const dark = said === undefined ? prefers.matches : said === "false";
    const theme = dark ? "dark" : "light";
    if (root.dataset.theme === theme) return;
    root.dataset.theme = theme;
    changed();
  };
  const watch = new MutationObserver(update);
  for (const body of bodies) if (body) watch.observe(body, { attributes: true, attributeFilter: ["data-jp-theme-light"] });
  prefers.addEventListener("change", update);
  update();
  return () => {
    watch.disconnect();
    prefers.removeEventListener("change", update);
  };
}

// ---- the explorer ------------------------------------------------------------------------------------------

let made = 0;

export function explore(host, about, bytes, model) {
  const { n, m, models, steps } = about;
  const [[rowWord, rowWords], [columnWord, columnWords]] = about.called; // each with its plural
  const data = views(about, bytes);
  const colours = words(data.colours);
  const signed = words(data.signed);
  const id = `vx${++made}`;
  const size = n * m;
  const pictures = (about.pictures || []).map(() => null); // decoded on demand
  const undo = [];

  const state = {
    step: steps.length - 1,
    view: models.length > 1 ? "both" : "0",
    order: 0,
    temperature: about.temperature,
    overlays: new Set(),
    zoom: 1,
    left: 0, // in cells, of the order that is shown
    top: 0,
    hover: null, // [row, column] as given, never as shown
    panel: 0, // which of two matrices the pointer is on
    pin: model.get("selected") || null,
  };

  // -- what stands on the page --
  const root = make("div", "vx", host);
  root.dataset.lmSuppressShortcuts = "true";
  const bar = make("div", "vx-bar", root);
  const main = make("div", "vx-main", root);
  const stage = make("div", "vx-stage", main);
  const canvas = make("canvas", "vx-matrix", stage);
  canvas.tabIndex = 0;
  canvas.setAttribute("role", "application");
  canvas.setAttribute("aria-roledescription", "matrix");
  canvas.setAttribute("aria-label", about.alt);
  canvas.setAttribute("aria-describedby", `${id}-help`);
  const scale = make("div", "vx-scale", stage);
  const pointing = make("p", "vx-pointing", stage);
  const help = make("p", "vx-help", stage,
    "Point at a cell. Click pins it. Arrow keys, Home, End, Page Up and Page Down walk; + and - or the wheel zoom, " +
    "dragging moves, 0 or a double click shows all, Escape lets go.");
  help.id = `${id}-help`;
  const side = make("section", "vx-readout", main);
  side.setAttribute("aria-label", "The cell in numbers");
  side.classList.toggle("vx-plain", !pictures.length);
  const live = make("p", "vx-live", root);
  live.setAttribute("aria-live", "polite");
  live.setAttribute("role", "status");

  // -- values --
  const codes = models.map((_, k) => data[`model${k}`]);
  const unit = about.top ? (about.high - about.low) / about.top : 0;
  const value = (k, r, c) => about.low + codes[k][state.step * size + r * m + c] * unit;
  const say = (x) => (x < 0 ? "−" : "") + Math.abs(x).toFixed(about.digits);
  const signedSay = (x) => (x < 0 ? "−" : "+") + Math.abs(x).toFixed(about.digits);
  const shown = () => (state.view === "both" ? [0, 1] : state.view === "change" ? ["change"] : [Number(state.view)]);
  const asked = () => (state.view === "both" ? state.panel : state.view === "change" ? 1 : Number(state.view));

  // Both softmax probabilities of a cell and its places in its row and column.
  function around(k, r, c) {
    const here = value(k, r, c);
    const result = { value: here };
    for (const [name, count, at] of [["row", m, (j) => value(k, r, j)], ["column", n, (i) => value(k, i, c)]]) {
      let most = -Infinity, sum = 0, place = 1;
      for (let i = 0; i < count; i++) most = Math.max(most, at(i));
      for (let i = 0; i < count; i++) {
        const x = at(i);
        sum += Math.exp((x - most) / state.temperature);
        if (x > here) place++;
      }
      result[name] = Math.exp((here - most) / state.temperature) / sum;
      result[`${name}Place`] = place;
    }
    return result;
  }
  const rough = () => Math.exp(unit / state.temperature) - 1 > 0.02; // probabilities follow values only so far

  function best(count, at) {
    return Array.from({ length: count }, (_, i) => i)
      .map((i) => [i, at(i)])
      .sort((a, b) => b[1] - a[1] || a[0] - b[0])
      .slice(0, TOP);
  }

  const truth = (r, c) => (data.truth ? ["false", "true", "unknown"][data.truth[r * m + c]] : null);

  // -- order: shown place -> given index, and back --
  const orders = about.orders.map((order, k) => {
    const rows = data[`rows${k}`], columns = data[`columns${k}`];
    const back = (list) => {
      const out = new Uint16Array(list.length);
      list.forEach((given, at) => (out[given] = at));
      return out;
    };
    return { ...order, rows, columns, rowAt: back(rows), columnAt: back(columns) };
  });
  const order = () => orders[state.order];

  // -- pictures of matrices, one pixel a cell: a sheet for each matrix and overlay, painted anew when it changes --
  const sheets = new Map();
  let pixels = null;
  function image(which, moment, paint) {
    if (!sheets.has(which)) {
      const sheet = document.createElement("canvas");
      sheet.width = m;
      sheet.height = n;
      sheets.set(which, { sheet, shows: "" });
    }
    const kept = sheets.get(which);
    const shows = `${moment}/${state.order}`;
    if (kept.shows !== shows) {
      pixels ||= new ImageData(m, n);
      paint(new Uint32Array(pixels.data.buffer));
      kept.sheet.getContext("2d").putImageData(pixels, 0, 0);
      kept.shows = shows;
    }
    return kept.sheet;
  }

  const shade = Uint8Array.from({ length: about.top + 1 }, (_, q) => (about.top ? Math.round((255 * q) / about.top) : 0));
  function matrix(which) {
    const { rows, columns } = order();
    return image(which, state.step, (out) => {
      const from = state.step * size;
      if (which === "change") {
        const reach = about.change || 1;
        const [a, b] = codes;
        for (let i = 0, at = 0; i < n; i++) {
          const row = from + rows[i] * m;
          for (let j = 0; j < m; j++, at++) {
            const moved = ((b[row + columns[j]] - a[row + columns[j]]) * unit) / reach;
            out[at] = signed[clamp(Math.round(127.5 + 127.5 * moved), 0, 255)];
          }
        }
        return;
      }
      const code = codes[which];
      for (let i = 0, at = 0; i < n; i++) {
        const row = from + rows[i] * m;
        for (let j = 0; j < m; j++, at++) out[at] = colours[shade[code[row + columns[j]]]];
      }
    });
  }

  const overlayAt = (k) => data[`overlay${k}`].subarray(about.overlays[k].steps ? state.step * size : 0);

  function layer(k) {
    const { kind, colour } = about.overlays[k];
    const { rows, columns } = order();
    const moment = about.overlays[k].steps ? state.step : 0;
    return image(`overlay${k}`, moment, (out) => {
      const cells = overlayAt(k);
      const bytes = new Uint8Array(out.buffer);
      const strength = kind === "bool" ? 225 : 1 / 257;
      out.fill(new Uint32Array(new Uint8Array([...colour, 0]).buffer)[0]);
      for (let i = 0, at = 3; i < n; i++) {
        const row = rows[i] * m;
        for (let j = 0; j < m; j++, at += 4) bytes[at] = cells[row + columns[j]] * strength;
      }
    });
  }

  function picture(r) {
    if (!pictures.length) return null;
    if (!pictures[r]) {
      const [offset, length, type] = about.pictures[r];
      pictures[r] = new Image();
      pictures[r].src = URL.createObjectURL(new Blob([bytes.subarray(offset, offset + length)], { type }));
      pictures[r].onload = schedule;
    }
    return pictures[r];
  }
  undo.push(() => pictures.forEach((p) => p && URL.revokeObjectURL(p.src)));

  // -- where things lie, in CSS pixels --
  const place = { width: 0, height: 0, panels: [] };
  let slanted = false; // whether captions stand above their columns
  function arrange() {
    const width = Math.floor(stage.clientWidth);
    if (!width) return;
    const list = shown();
    const left = 46, gap = 18;
    slanted = Math.min((width - 100) / list.length / m, 690 / n) >= 22;
    const right = slanted ? 54 : 6;
    const title = list.length > 1 || list[0] === "change" ? 20 : 0;
    const above = title + (slanted ? 96 : 26);
    const room = (width - left - right - gap * (list.length - 1)) / list.length;
    const cell = Math.min(room / m, 690 / n, 64);
    const w = clamp(cell * m, Math.min(60, room), room);
    const h = Math.max(cell * n, 40);
    place.panels = list.map((which, k) => ({ which, k, x: left + k * (w + gap), y: above, w, h }));
    place.title = title;
    place.width = width;
    place.height = Math.ceil(above + h + 6);
    const sharp = window.devicePixelRatio || 1;
    canvas.style.height = `${place.height}px`;
    canvas.width = Math.round(width * sharp);
    canvas.height = Math.round(place.height * sharp);
    place.sharp = sharp;
    place.most = Math.max(4, 64 / Math.min(w / m, h / n));
    scale.style.width = `${Math.min(width - left, Math.max(w * list.length, 220))}px`;
    scale.style.marginLeft = `${left}px`;
    keepInside();
  }

  function keepInside() {
    state.zoom = clamp(state.zoom, 1, place.most);
    state.left = clamp(state.left, 0, m - m / state.zoom);
    state.top = clamp(state.top, 0, n - n / state.zoom);
    canvas.style.touchAction = state.zoom > 1 ? "none" : "pan-y";
  }

  const cellWidth = (p) => (p.w * state.zoom) / m;
  const cellHeight = (p) => (p.h * state.zoom) / n;

  function hit(x, y) {
    for (const p of place.panels) {
      if (x < p.x || y < p.y || x >= p.x + p.w || y >= p.y + p.h) continue;
      const j = Math.floor(state.left + (x - p.x) / cellWidth(p));
      const i = Math.floor(state.top + (y - p.y) / cellHeight(p));
      if (i >= n || j >= m) continue;
      return { cell: [order().rows[i], order().columns[j]], panel: p.k, i, j };
    }
    return null;
  }

  // The middle of a cell, in pixels of the canvas; null where it is out of sight.
  function where(r, c, k = 0) {
    const p = place.panels[k];
    const x = p.x + (order().columnAt[c] + 0.5 - state.left) * cellWidth(p);
    const y = p.y + (order().rowAt[r] + 0.5 - state.top) * cellHeight(p);
    return x < p.x || y < p.y || x > p.x + p.w || y > p.y + p.h ? null : [x, y];
  }

  // -- drawing --
  let waiting = 0, dead = false;
  const timing = { draw: 0, worst: 0 };
  function schedule() {
    if (!waiting && !dead) waiting = requestAnimationFrame(() => { waiting = 0; paint(); });
  }

  function paint() {
    const began = performance.now();
    if (!place.width) arrange();
    if (!place.width) return;
    const g = canvas.getContext("2d");
    const css = getComputedStyle(root);
    const ink = css.getPropertyValue("--vx-ink"), muted = css.getPropertyValue("--vx-muted");
    g.setTransform(place.sharp, 0, 0, place.sharp, 0, 0);
    g.clearRect(0, 0, place.width, place.height);
    const on = [...state.overlays].sort();
    for (const p of place.panels) {
      const cw = cellWidth(p), ch = cellHeight(p);
      const source = [state.left, state.top, m / state.zoom, n / state.zoom, p.x, p.y, p.w, p.h];
      g.save();
      g.beginPath();
      g.rect(p.x, p.y, p.w, p.h);
      g.clip();
      g.imageSmoothingEnabled = Math.min(cw, ch) * place.sharp < 1;
      g.imageSmoothingQuality = "high";
      g.drawImage(matrix(p.which), ...source);
      if (on.some((k) => about.overlays[k].kind === "real")) {
        g.fillStyle = "rgba(16, 17, 20, 0.45)";
        g.fillRect(p.x, p.y, p.w, p.h);
      }
      on.forEach((k, nth) => {
        if (about.overlays[k].kind === "real" || Math.min(cw, ch) < MARKED) g.drawImage(layer(k), ...source);
        else frames(g, p, k, nth);
      });
      groups(g, p);
      for (const cell of [state.hover, state.pin]) if (cell) cross(g, p, cell, cell === state.pin);
      g.restore();
      if (place.title) {
        g.fillStyle = ink;
        g.font = "600 13px system-ui, sans-serif";
        g.fillText(p.which === "change" ? `${models[1]} minus ${models[0]}` : models[p.which], p.x, 14, p.w);
      }
      margins(g, p, ink, muted);
    }
    timing.draw = performance.now() - began;
    timing.worst = Math.max(timing.worst, timing.draw);
  }

  const visible = (p) => [
    Math.floor(state.top), Math.min(n, Math.ceil(state.top + n / state.zoom)),
    Math.floor(state.left), Math.min(m, Math.ceil(state.left + m / state.zoom)),
  ];

  function frames(g, p, k, nth) {
    const cells = overlayAt(k);
    const { rows, columns } = order();
    const cw = cellWidth(p), ch = cellHeight(p);
    const thick = clamp(Math.min(cw, ch) / 9, 1.2, 3);
    const inset = thick / 2 + nth * (thick + 0.6);
    const [i0, i1, j0, j1] = visible(p);
    g.beginPath();
    for (let i = i0; i < i1; i++)
      for (let j = j0; j < j1; j++)
        if (cells[rows[i] * m + columns[j]])
          g.rect(p.x + (j - state.left) * cw + inset, p.y + (i - state.top) * ch + inset,
            Math.max(1, cw - 2 * inset), Math.max(1, ch - 2 * inset));
    g.setLineDash(nth === 0 ? [] : nth === 1 ? [4, 2] : [1.5, 2]);
    g.strokeStyle = "rgba(16, 17, 20, 0.55)";
    g.lineWidth = thick + 1.2;
    g.stroke();
    g.strokeStyle = `rgb(${about.overlays[k].colour.join(" ")})`;
    g.lineWidth = thick;
    g.stroke();
    g.setLineDash([]);
  }

  function cross(g, p, [r, c], pinned) {
    const cw = cellWidth(p), ch = cellHeight(p);
    const x = p.x + (order().columnAt[c] - state.left) * cw;
    const y = p.y + (order().rowAt[r] - state.top) * ch;
    // lines beside the row and the column: a veil over them would change the colours that are to be read
    const tall = Math.max(ch, 5), wide = Math.max(cw, 5);
    const above = y + ch / 2 - tall / 2, before = x + cw / 2 - wide / 2;
    const beside = [[p.x, above, p.w, 1], [p.x, above + tall - 1, p.w, 1], [before, p.y, 1, p.h], [before + wide - 1, p.y, 1, p.h]];
    g.fillStyle = "rgba(16, 17, 20, 0.5)";
    for (const [a, b, across, down] of beside) g.fillRect(a - 1, b - 1, across + 2, down + 2);
    g.fillStyle = pinned ? "rgba(255, 255, 255, 0.95)" : "rgba(255, 255, 255, 0.65)";
    for (const line of beside) g.fillRect(...line);
    const w = Math.max(cw, 7), h = Math.max(ch, 7);
    const box = [x + cw / 2 - w / 2, y + ch / 2 - h / 2, w, h];
    g.lineWidth = pinned ? 5 : 3;
    g.strokeStyle = "rgba(16, 17, 20, 0.9)";
    g.strokeRect(...box);
    g.lineWidth = pinned ? 2.5 : 1.5;
    g.strokeStyle = "#ffffff";
    g.strokeRect(...box);
  }

  function groups(g, p) {
    g.fillStyle = "rgba(253, 252, 249, 0.6)";
    for (const [start] of (order().rowGroups || []).slice(1)) {
      const y = p.y + (start - state.top) * cellHeight(p);
      g.fillRect(p.x, y - 0.5, p.w, 1);
    }
    for (const [start] of (order().columnGroups || []).slice(1)) {
      const x = p.x + (start - state.left) * cellWidth(p);
      g.fillRect(x - 0.5, p.y, 1, p.h);
    }
  }

  function margins(g, p, ink, muted) {
    const cw = cellWidth(p), ch = cellHeight(p);
    const { rows, columns } = order();
    const [i0, i1, j0, j1] = visible(p);
    g.save();
    g.fillStyle = muted;
    g.font = "11px system-ui, sans-serif";
    if (p.k === 0) {
      g.save();
      g.beginPath();
      g.rect(0, p.y - 6, p.x, p.h + 12);
      g.clip();
      if (pictures.length && ch >= THUMB) {
        const side = Math.min(ch - 2, p.x - 8);
        g.imageSmoothingEnabled = true;
        for (let i = i0; i < i1; i++) {
          const shownPicture = picture(rows[i]);
          if (!shownPicture.complete || !shownPicture.naturalWidth) continue;
          const ratio = shownPicture.naturalWidth / shownPicture.naturalHeight;
          const w = side * Math.min(1, ratio), h = side / Math.max(1, ratio);
          g.drawImage(shownPicture, p.x - 4 - side + (side - w) / 2, p.y + (i + 0.5 - state.top) * ch - h / 2, w, h);
        }
      } else if (order().rowGroups && ch < THUMB) {
        named(order().rowGroups, n, (at) => p.y + (at - state.top) * ch, p.y, p.y + p.h, (text, a, b) => {
          if (b - a < 10) return;
          g.textAlign = "right";
          g.textBaseline = "middle";
          g.fillText(text, p.x - 5, (a + b) / 2, p.x - 6);
        });
      } else {
        g.textAlign = "right";
        g.textBaseline = "middle";
        for (const i of ticks(i0, i1, ch, 22)) g.fillText(about.rowNames ? about.rowNames[rows[i]] : rows[i], p.x - 6, p.y + (i + 0.5 - state.top) * ch, p.x - 8);
      }
      g.restore();
    }
    g.textBaseline = "alphabetic";
    if (slanted) {
      g.fillStyle = ink;
      g.save();
      g.beginPath();
      g.rect(p.x - 8, 0, p.w + 70, p.y);
      g.clip();
      for (let j = j0; j < j1; j++) {
        g.save();
        g.translate(p.x + (j + 0.5 - state.left) * cw + 3, p.y - 7);
        g.rotate(-Math.PI / 3.6);
        g.fillText(clip(g, about.captions[columns[j]], 104), 0, 0);
        g.restore();
      }
      g.restore();
    } else if (order().columnGroups) {
      g.textAlign = "center";
      named(order().columnGroups, m, (at) => p.x + (at - state.left) * cw, p.x, p.x + p.w, (text, a, b) => {
        if (b - a > 16) g.fillText(clip(g, text, b - a - 4), (a + b) / 2, p.y - 8);
      });
    } else {
      g.textAlign = "center";
      for (const j of ticks(j0, j1, cw, 34)) g.fillText(columns[j], p.x + (j + 0.5 - state.left) * cw, p.y - 8);
    }
    g.restore();
  }

  // Round places far enough apart; where cells are large, every one.
  function ticks(from, to, cell, apart) {
    const every = [1, 2, 5, 10, 20, 50, 100, 200, 500].find((step) => step * cell >= apart) || 1000;
    const out = [];
    for (let i = Math.ceil(from / every) * every; i < to; i += every) out.push(i);
    return out;
  }

  function named(list, count, at, low, high, write) {
    list.forEach(([start, text], k) => {
      const a = Math.max(low, at(start)), b = Math.min(high, at(k + 1 < list.length ? list[k + 1][0] : count));
      if (b > a) write(text, a, b);
    });
  }

  function clip(g, text, room) {
    if (g.measureText(text).width <= room) return text;
    let kept = text;
    while (kept && g.measureText(`${kept}…`).width > room) kept = kept.slice(0, -1);
    return kept ? `${kept.trimEnd()}…` : "";
  }

  // -- the colour bar --
  const low = make("span", "", scale), strip = make("span", "vx-strip", scale), high = make("span", "", scale);
  const mark = make("span", "vx-mark", strip);
  function bars() {
    const change = state.view === "change";
    const table = change ? data.signed : data.colours;
    const stops = Array.from({ length: 33 }, (_, i) => {
      const at = 3 * Math.min(255, i * 8);
      return `rgb(${table[at]} ${table[at + 1]} ${table[at + 2]})`;
    });
    strip.style.background = `linear-gradient(90deg, ${stops.join(", ")})`;
    low.textContent = change ? signedSay(-about.change) : say(about.low);
    const kept = about.top === 255 ? `, ± ${(unit / 2).toPrecision(1)}` : ""; // few levels: say how far they are right
    high.textContent = `${change ? signedSay(about.change) : say(about.high)} ${about.label}${kept}`;
  }

  // -- the readout --
  const pair = make("div", "vx-pair", side);
  const shownImage = pictures.length ? make("img", "vx-picture", pair) : null;
  const words_ = make("div", "vx-words", pair);
  const title = make("p", "vx-where", words_);
  const caption = make("p", "vx-caption", words_);
  const verdict = make("p", "vx-truth", words_);
  const numbers = make("table", "vx-numbers", side);
  make("caption", "vx-hidden", numbers, "Value and probabilities of the cell");
  const tops = make("div", "vx-tops", side);
  const lists = [`${columnWords} for this ${rowWord}`, `${rowWords} for this ${columnWord}`].map((what, nth) => {
    const block = make("div", "vx-block", tops);
    const heading = make("h2", "", block, `Best ${what}`);
    const list = make("ol", "", block);
    const lines = Array.from({ length: TOP }, () => {
      const line = make("li", "", list);
      const button = make("button", "vx-line", line);
      button.type = "button";
      const face = nth === 1 && pictures.length ? make("img", "vx-thumb", button) : null;
      if (face) face.alt = "";
      const text = make("span", "vx-text", button);
      const number = make("span", "vx-number", button);
      button.addEventListener("click", () => button.cell && choose(button.cell, true));
      return { line, button, face, text, number };
    });
    return { heading, lines, what };
  });

  const rowName = (r) => (about.rowNames ? about.rowNames[r] : `${rowWord} ${r}`);
  const truthWords = { true: `✓ true of this ${rowWord}`, false: `✗ not true of this ${rowWord}`, unknown: "? nobody knows whether it is true" };

  let toldTo = 0;
  function read() {
    const cell = state.pin || state.hover;
    side.classList.toggle("vx-empty", !cell);
    if (state.hover) {
      const [r, c] = state.hover;
      const there = state.view === "change" ? signedSay(value(1, r, c) - value(0, r, c)) : say(value(asked(), r, c));
      pointing.textContent = `${rowName(r)} × ${columnWord} ${c}: ${there}, “${about.captions[c]}”`;
    } else pointing.textContent = state.pin ? "pinned; click the cell again to let go" : "";
    if (!cell) {
      title.textContent = "no cell yet";
      caption.textContent = "Point at the matrix, or focus it and press an arrow key.";
      verdict.hidden = true;
      mark.hidden = true;
      return;
    }
    const [r, c] = cell;
    if (shownImage) {
      const source = picture(r);
      if (shownImage.src !== source.src) shownImage.src = source.src;
      shownImage.alt = rowName(r);
    }
    title.textContent = `${rowName(r)} × ${columnWord} ${c}`;
    caption.textContent = about.captions[c];
    const said = truth(r, c);
    verdict.hidden = !said;
    if (said) {
      verdict.dataset.truth = said;
      verdict.textContent = truthWords[said];
    }
    const list = models.length > 1 && state.view !== "0" && state.view !== "1" ? [0, 1] : [Number(state.view)];
    const found = list.map((k) => around(k, r, c));
    const change = state.view === "change";
    mark.hidden = false;
    const at = change ? (found[1].value - found[0].value) / (2 * about.change || 1) + 0.5
      : (found[list.indexOf(asked())].value - about.low) / (about.high - about.low || 1);
    mark.style.left = `${100 * clamp(at, 0, 1)}%`;
    const body = document.createElement("tbody");
    if (list.length > 1) {
      const head = make("tr", "", body);
      make("td", "", head);
      for (const k of list) make("th", "", head, models[k]).scope = "col";
    }
    const guess = rough();
    for (const [name, key, write] of [
      [about.label, "value", (f) => say(f.value)],
      ["softmax along the row", "row", (f) => share(f.row, guess)],
      ["softmax down the column", "column", (f) => share(f.column, guess)],
      ["place in the row", "rowPlace", (f) => `${f.rowPlace} of ${m}`],
      ["place in the column", "columnPlace", (f) => `${f.columnPlace} of ${n}`],
    ]) {
      const line = make("tr", `vx-${key}`, body);
      make("th", "", line, name).scope = "row";
      for (const f of found) {
        const box = make("td", "", line, write(f));
        if (key === "row" || key === "column") box.style.setProperty("--vx-share", f[key].toFixed(4));
      }
    }
    for (const k of [...state.overlays].sort()) {
      const { name, kind, low: from, high: to } = about.overlays[k];
      const here = overlayAt(k)[r * m + c];
      const line = make("tr", "vx-laid", body);
      make("th", "", line, name).scope = "row";
      const word = kind === "bool" ? (here ? "yes" : "no") : (from + (here * (to - from)) / 65535).toPrecision(2);
      make("td", "", line, word).colSpan = found.length;
    }
    if (change) {
      const line = make("tr", "vx-moved", body);
      make("th", "", line, "difference").scope = "row";
      make("td", "", line);
      make("td", "", line, signedSay(found[1].value - found[0].value));
    }
    numbers.tBodies[0]?.remove();
    numbers.append(body);
    const k = asked();
    const rankings = [best(m, (j) => value(k, r, j)), best(n, (i) => value(k, i, c))];
    lists.forEach(({ heading, lines, what }, nth) => {
      heading.textContent = `Best ${what}${list.length > 1 ? ` (${models[k]})` : ""}`;
      lines.forEach(({ line, button, face, text, number }, at) => {
        const found_ = rankings[nth][at];
        line.hidden = !found_;
        if (!found_) return;
        const there = nth === 0 ? [r, found_[0]] : [found_[0], c];
        button.cell = there;
        button.dataset.here = same(there, cell);
        const known = truth(...there);
        text.textContent = (known === "true" ? "✓ " : "") + (nth === 0 ? about.captions[found_[0]] : rowName(found_[0]));
        button.title = nth === 0 ? about.captions[found_[0]] : rowName(found_[0]);
        if (face) face.src = picture(found_[0]).src;
        number.textContent = say(found_[1]);
      });
    });
    clearTimeout(toldTo);
    if (document.activeElement === canvas || root.contains(document.activeElement))
      toldTo = setTimeout(() => {
        const f = around(k, r, c);
        live.textContent = `${rowName(r)}, ${columnWord} ${c}, ${about.captions[c]}: ${about.label} ${say(f.value)}, ` +
          `row ${share(f.row)}, column ${share(f.column)}${said ? `, ${said === "true" ? "true" : said === "false" ? "not true" : "unknown"}` : ""}`;
      }, CALM);
  }

  // -- what people do --
  function choose(cell, follow) {
    if (!same(state.pin, cell)) {
      state.pin = cell;
      model.set("selected", cell);
      model.save_changes();
    }
    if (cell && follow) bringIntoView(cell);
    read();
    schedule();
  }

  function bringIntoView([r, c]) {
    const i = order().rowAt[r], j = order().columnAt[c];
    const high_ = n / state.zoom, wide = m / state.zoom;
    if (i < state.top) state.top = i;
    if (i + 1 > state.top + high_) state.top = i + 1 - high_;
    if (j < state.left) state.left = j;
    if (j + 1 > state.left + wide) state.left = j + 1 - wide;
    keepInside();
  }

  function zoomAt(factor, x, y) {
    const p = place.panels.find((q) => x >= q.x && x <= q.x + q.w) || place.panels[0];
    const before = state.zoom;
    const u = clamp((x - p.x) / p.w, 0, 1), v = clamp((y - p.y) / p.h, 0, 1);
    const j = state.left + (u * m) / before, i = state.top + (v * n) / before;
    state.zoom = clamp(before * factor, 1, place.most);
    state.left = j - (u * m) / state.zoom;
    state.top = i - (v * n) / state.zoom;
    keepInside();
    schedule();
    return state.zoom !== before;
  }

  function zoomMiddle(factor) {
    const cell = state.pin && where(...state.pin, 0);
    const p = place.panels[0];
    zoomAt(factor, ...(cell || [p.x + p.w / 2, p.y + p.h / 2]));
  }

  function reset() {
    Object.assign(state, { zoom: 1, left: 0, top: 0 });
    keepInside();
    schedule();
  }

  const spot = (event) => {
    const box = canvas.getBoundingClientRect();
    return [event.clientX - box.left, event.clientY - box.top];
  };
  let drag = null, meant = false, screen = null, pinBefore = null;

  canvas.addEventListener("pointermove", (event) => {
    // a page that scrolls under a resting pointer sends moves too: only a hand that moves arms the wheel
    if (screen && (screen[0] !== event.screenX || screen[1] !== event.screenY)) meant = true;
    screen = [event.screenX, event.screenY];
    const [x, y] = spot(event);
    if (drag) {
      if (Math.hypot(x - drag.x, y - drag.y) > 4) drag.moved = true;
      if (drag.moved) {
        const p = place.panels[0];
        state.left = drag.left - (x - drag.x) / cellWidth(p);
        state.top = drag.top - (y - drag.y) / cellHeight(p);
        keepInside();
        schedule();
        return;
      }
    }
    const found = hit(x, y);
    if (same(found && found.cell, state.hover) && (!found || found.panel === state.panel)) return;
    state.hover = found && found.cell;
    if (found) state.panel = found.panel;
    read();
    schedule();
  });
  canvas.addEventListener("pointerleave", () => {
    meant = false;
    screen = null;
    if (drag) return;
    state.hover = null;
    read();
    schedule();
  });
  canvas.addEventListener("pointerdown", (event) => {
    if (event.button) return;
    const [x, y] = spot(event);
    drag = { x, y, left: state.left, top: state.top, moved: false };
    if (event.pointerType === "mouse") canvas.setPointerCapture(event.pointerId);
  });
  canvas.addEventListener("pointerup", (event) => {
    const was = drag;
    drag = null;
    if (!was || was.moved) return;
    canvas.focus({ preventScroll: true });
    const found = hit(...spot(event));
    if (!found) return;
    state.panel = found.panel;
    pinBefore = state.pin;
    choose(same(found.cell, state.pin) ? null : found.cell);
  });
  canvas.addEventListener("pointercancel", () => (drag = null));
  canvas.addEventListener("dblclick", () => {
    if (pinBefore) choose(pinBefore); // the first of the two clicks had moved or lifted the pin
    reset();
  });
  canvas.addEventListener("wheel", (event) => {
    if (!meant && !event.ctrlKey && document.activeElement !== canvas) return;
    if (zoomAt(Math.exp(-clamp(event.deltaY, -120, 120) / 300), ...spot(event))) event.preventDefault();
  }, { passive: false });

  canvas.addEventListener("keydown", (event) => {
    if (event.ctrlKey && !["Home", "End"].includes(event.key)) return;
    if (event.metaKey || event.altKey) return;
    const from = state.pin || state.hover;
    let i = from ? order().rowAt[from[0]] : -1, j = from ? order().columnAt[from[1]] : -1;
    const page = Math.max(1, Math.round(n / state.zoom / 4));
    const moves = {
      ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0],
      PageUp: [-page, 0], PageDown: [page, 0], Home: [0, -m], End: [0, m],
    };
    const act = {
      "+": () => zoomMiddle(1.4), "=": () => zoomMiddle(1.4), "-": () => zoomMiddle(1 / 1.4), 0: reset,
      Escape: () => choose(null), Enter: () => from && choose(state.pin ? null : from, true),
      " ": () => from && choose(state.pin ? null : from, true),
    };
    if (event.key in moves) {
      if (!from) [i, j] = [0, 0];
      else {
        const [di, dj] = moves[event.key];
        const corner = event.ctrlKey ? (event.key === "Home" ? -n : n) : 0;
        i = clamp(i + di + corner, 0, n - 1);
        j = clamp(j + dj, 0, m - 1);
      }
      choose([order().rows[i], order().columns[j]], true);
    } else if (event.key in act) act[event.key]();
    else return;
    event.preventDefault();
    event.stopPropagation(); // a notebook has keys of its own
  });

  // -- the controls --
  function field(label, tag, name) {
    const box = make("label", `vx-field ${name}`, bar);
    make("span", "vx-name", box, label);
    return make(tag, "", box);
  }

  function choice(label, name, options, start, changed) {
    const select = field(label, "select", name);
    for (const [key, text] of options) make("option", "", select, text).value = key;
    select.value = start;
    select.addEventListener("change", () => changed(select.value));
    return select;
  }

  let timer = 0;
  let goTo = () => {};
  if (steps.length > 1) {
    const slider = field(about.stepLabel, "input", "vx-steps");
    Object.assign(slider, { type: "range", min: 0, max: steps.length - 1, step: 1, value: state.step });
    const word = make("output", "vx-step", slider.parentNode);
    const play = make("button", "vx-button", bar, "Play");
    play.type = "button";
    slider.parentNode.after(play);
    goTo = (step) => {
      state.step = clamp(step, 0, steps.length - 1);
      slider.value = state.step;
      slider.setAttribute("aria-valuetext", `${steps[state.step]}, ${state.step + 1} of ${steps.length}`);
      word.textContent = steps[state.step];
      read();
      schedule();
    };
    const stop = () => {
      clearInterval(timer);
      timer = 0;
      play.textContent = "Play";
    };
    slider.addEventListener("input", () => { stop(); goTo(Number(slider.value)); });
    play.addEventListener("click", () => {
      if (timer) return stop();
      play.textContent = "Pause";
      if (state.step === steps.length - 1) goTo(0);
      timer = setInterval(() => (state.step === steps.length - 1 ? stop() : goTo(state.step + 1)), 600);
    });
    undo.push(stop);
  }
  if (models.length > 1)
    choice("show", "vx-view", [["both", "side by side"], ["0", models[0]], ["1", models[1]], ["change", "difference"]],
      state.view, (view) => {
        Object.assign(state, { view, panel: 0, hover: null });
        arrange();
        bars();
        read();
        schedule();
      });
  if (orders.length > 1)
    choice("sort", "vx-sort", orders.map((o, k) => [k, o.name]), 0, (k) => {
      state.order = Number(k);
      if (state.pin) bringIntoView(state.pin);
      state.hover = null;
      read();
      schedule();
    });
  const warmth = field("temperature", "input", "vx-temperature");
  Object.assign(warmth, { type: "range", min: -2.3, max: 0.3, step: 0.01, value: Math.log10(state.temperature) });
  const degree = make("output", "", warmth.parentNode, state.temperature.toPrecision(2));
  warmth.addEventListener("input", () => {
    state.temperature = 10 ** Number(warmth.value);
    degree.textContent = state.temperature.toPrecision(2);
    warmth.setAttribute("aria-valuetext", degree.textContent);
    read();
  });
  const zooms = make("div", "vx-zooms", bar);
  zooms.setAttribute("role", "group");
  zooms.setAttribute("aria-label", "zoom");
  for (const [sign, label, act] of [["−", "zoom out", () => zoomMiddle(1 / 1.4)], ["+", "zoom in", () => zoomMiddle(1.4)], ["all", "show all cells", reset]]) {
    const button = make("button", "vx-button", zooms, sign);
    button.type = "button";
    button.setAttribute("aria-label", label);
    button.title = label;
    button.addEventListener("click", act);
  }
  if (about.overlays.length) {
    const set = make("fieldset", "vx-overlays", bar);
    make("legend", "vx-name", set, "mark");
    about.overlays.forEach(({ name, kind, colour, start, low: low_, high: top_ }, k) => {
      const label = make("label", "", set);
      const box = make("input", "", label);
      box.type = "checkbox";
      box.checked = start;
      if (start) state.overlays.add(k);
      const chip = make("span", "vx-chip", label);
      chip.style.background = `rgb(${colour.join(" ")})`;
      make("span", "", label, name);
      if (kind === "real") make("span", "vx-name", label, `${low_.toPrecision(2)} to ${top_.toPrecision(2)}`);
      box.addEventListener("change", () => {
        state.overlays[box.checked ? "add" : "delete"](k);
        read();
        schedule();
      });
    });
  }

  // -- go --
  model.on("change:selected", () => {
    const cell = model.get("selected") || null;
    if (same(cell, state.pin)) return;
    state.pin = cell;
    if (cell) bringIntoView(cell);
    read();
    schedule();
  });
  undo.push(followTheme(root, schedule));
  const watch = new ResizeObserver(() => {
    if (Math.floor(stage.clientWidth) !== place.width) {
      arrange();
      schedule();
    }
  });
  watch.observe(stage);
  undo.push(() => watch.disconnect());
  arrange();
  bars();
  goTo(state.step);
  read();
  paint();
  root.dataset.ready = "true";
  // for tests and for the curious
  root.explorer = { n, m, state, timing, where, value, paint, matrix, goTo };
  return () => {
    dead = true;
    cancelAnimationFrame(waiting);
    clearTimeout(toldTo);
    undo.forEach((f) => f());
    root.remove();
  };
}

// ---- the saved page: a model without a kernel ----------------------------------------------------------------

// Where the page stands in a notebook whose kernel runs, the widget's model outside answers and both keep in step.
function pageModel(key, selected) {
  const heard = [];
  const state = { selected };
  const outside = window.parent !== window && key ? window.parent : null;
  const tell = (what) => outside?.postMessage({ vlnotes: key, ...what }, "*");
  let wanted = null;
  window.addEventListener("message", ({ source, data }) => {
    if (source !== outside || !data || data.vlnotes !== key) return;
    if ("bytes" in data) wanted?.(data.bytes);
    else if ("selected" in data) {
      state.selected = data.selected;
      heard.forEach((f) => f());
    } else tell({ hello: true, ask: !!wanted });
  });
  tell({ hello: true });
  return {
    get: (name) => state[name],
    set: (name, value) => (state[name] = value),
    save_changes: () => tell({ selected: state.selected }),
    on: (event, f) => heard.push(f),
    bytes: () => new Promise((done) => {
      wanted = (bytes) => { wanted = null; done(bytes); };
      tell({ hello: true, ask: true });
    }),
  };
}

export async function openPage(host) {
  const about = JSON.parse(document.getElementById("vx-about").textContent);
  const model = pageModel(about.key, about.selected);
  document.documentElement.toggleAttribute("data-framed", window.parent !== window);
  // a notebook does not keep what is very large: the model outside has it, as long as the kernel runs
  const store = document.getElementById("vx-bytes");
  const bytes = await inflate(store.textContent ? fromBase64(store.textContent) : [await model.bytes()], about);
  store.remove();
  let frame = null;
  try {
    frame = window.frameElement;
  } catch { /* a page of somebody else */ }
  if (frame) {
    // in a notebook the page takes the height that it needs, and the still picture before it goes
    const fit = () => (frame.style.height = `${Math.ceil(document.body.getBoundingClientRect().height)}px`);
    if (frame.previousElementSibling?.tagName === "IMG") frame.previousElementSibling.style.display = "none";
    fit();
    new ResizeObserver(fit).observe(document.body);
  }
  explore(host, about, bytes, model);
}

// ---- the live widget -----------------------------------------------------------------------------------------

// Keeps the pages of this explorer in step with Python; they stand in frames of the same notebook.
function initialize({ model }) {
  const key = model.get("key");
  const pages = new Set();
  const tell = (page) => page.postMessage({ vlnotes: key, selected: model.get("selected") ?? null }, "*");
  const listen = ({ source, data }) => {
    if (!data || data.vlnotes !== key || !source) return;
    pages.add(source);
    const kept = model.get("data");
    if (data.ask && kept?.byteLength) {
      const bytes = new Uint8Array(kept.buffer, kept.byteOffset, kept.byteLength).slice();
      source.postMessage({ vlnotes: key, bytes }, "*", [bytes.buffer]);
    }
    if (!("selected" in data)) return tell(source);
    model.set("selected", data.selected);
    model.save_changes();
  };
  const spread = () => pages.forEach(tell);
  window.addEventListener("message", listen);
  model.on("change:selected", spread);
  for (const frame of document.querySelectorAll(`iframe[data-vlnotes="${key}"]`))
    frame.contentWindow?.postMessage({ vlnotes: key, hello: true }, "*");
  return () => {
    window.removeEventListener("message", listen);
    model.off("change:selected", spread);
  };
}

async function render({ model, el }) {
  let stop = null, gone = false;
  const answer = async ({ about }, buffers) => {
    if (!about || stop) return;
    const view = buffers[0] || model.get("data");
    const bytes = await inflate([new Uint8Array(view.buffer || view, view.byteOffset || 0, view.byteLength)], about);
    if (!gone) stop = explore(el, about, bytes, model);
  };
  model.on("msg:custom", answer);
  model.send({ ask: "data" });
  return () => {
    gone = true;
    model.off("msg:custom", answer);
    stop?.();
  };
}

export default { initialize, render };
