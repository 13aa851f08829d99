// The viewer of a page: slices along the axes, two images over each other, fields, labels.
// Data: #viewer-index is JSON; each volume is base64 of gzip in its own <script type="text/plain">.
// Text from the index is only ever set as text, never as markup.
"use strict";
(() => {
  const byId = (id) => document.getElementById("viewer-" + id);
  const index = JSON.parse(byId("index").textContent);
  const { shape, spacing, ends, affine, offset } = index.grid;
  const dims = shape.length;
  const NAMES = { LR: "sagittal", PA: "coronal", IS: "axial" };
  const KEPT = 24; // unpacked volumes in memory
  const LARGEST_GROWTH = Math.log(4);
  const OUTLINE = 0.2; // of the scale's end: the value at which an outline runs
  const LINE = [90, 200, 255];
  const FIRE = [[0, 0, 0], [140, 20, 0], [235, 80, 0], [255, 150, 0], [255, 215, 40]];
  const SEA = [[40, 0, 90], [50, 80, 150], [30, 150, 140], [110, 205, 90], [250, 230, 40]];
  const STORED = { u1: Uint8Array, i2: Int16Array, u2: Uint16Array, u4: Uint32Array };
  const FAINT = 0.25; // of the opacity: the other labels, where one is chosen
  const BALANCE = [[30, 70, 220], [130, 170, 255], [255, 255, 255], [255, 150, 120], [210, 30, 20]];

  // ---- data ----------------------------------------------------------------------------------

  const unpacked = new Map();

  async function unpack(block) {
    if (unpacked.has(block.id)) {
      const known = unpacked.get(block.id);
      unpacked.delete(block.id); // and again at the end: the oldest is dropped first
      unpacked.set(block.id, known);
      return known;
    }
    const text = byId(block.id).textContent;
    const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    const raw = await new Response(stream).arrayBuffer();
    const values = new STORED[block.stored](raw);
    unpacked.set(block.id, values);
    if (unpacked.size > KEPT) unpacked.delete(unpacked.keys().next().value);
    return values;
  }

  // A layer's volume of the chosen tract, or of all tracts where the page doesn't contain that one.
  async function volumeOf(layer, tract) {
    const block = (tract >= 0 && layer.tracts[tract]) || layer.whole;
    const all = await unpack(block);
    const cells = layer.kind === "field" ? block.shape.slice(1) : block.shape;
    const strides = cells.map((_, axis) => cells.slice(axis + 1).reduce((a, b) => a * b, 1));
    const size = cells.reduce((a, b) => a * b, 1);
    const shift = layer.kind === "signed" ? 128 : 0;
    const at = (cell) => cell.reduce((sum, i, axis) => sum + i * strides[axis], 0);
    const component = (i, axis) => all[axis * size + i] * block.scale;
    const length = (i) => Math.hypot(...cells.map((_, axis) => component(i, axis)));
    const value = layer.kind === "field" ? length : (i) => (all[i] - shift) * block.scale;
    let top = (layer.kind === "signed" ? 127 : 255) * block.scale;
    if (layer.kind === "signed") top = Math.min(top, LARGEST_GROWTH);
    if (layer.kind === "density") top = index.top;
    if (layer.kind === "percent") top = 100;
    if (layer.kind === "share") top = 1;
    if (layer.kind === "field") {
      top = 0;
      for (let i = 0; i < size; i++) top = Math.max(top, length(i));
    }
    return { layer, cells, strides, at, value, component, top: top || 1, missing:
      tract >= 0 && !layer.tracts[tract] && ["density", "percent", "plain"].includes(layer.kind) };
  }

  // ---- what is shown -------------------------------------------------------------------------

  const shown = {
    image: index.image, overlay: index.overlay === null ? "none" : "layer " + index.overlay,
    before: false, outline: index.outline, tract: -1, label: 0, opacity: 0.6, brightness: 1,
    cell: [...index.cell],
    subject: index.layers[index.image].subject || (index.layers.find((l) => l.subject) || {}).subject,
  };
  let base = null, over = null;

  const layerOf = (subject, role) =>
    index.layers.find((l) => l.subject === subject && l.role === role);

  function overlayLayer() {
    const [kind, number] = shown.overlay.split(" ");
    if (kind === "layer") return index.layers[Number(number)];
    if (kind === "none") return null;
    return layerOf(shown.subject, OF_SUBJECT.find(([value]) => value === kind)[1]);
  }

  let latest = 0;
  async function load() {
    const mine = ++latest;
    const chosen = index.layers[shown.image];
    const before = chosen.subject && layerOf(chosen.subject, "before");
    const image = shown.before && before ? before : chosen;
    const overlay = overlayLayer();
    const volumes = await Promise.all(
      [image, overlay].map((layer) => layer && volumeOf(layer, shown.tract)));
    if (mine !== latest) return; // something else was chosen in the meantime
    [base, over] = volumes;
    labels();
    byId("outline").disabled = !canOutline();
    byId("before").disabled = !before;
    byId("before-label").hidden = !index.layers.some((l) => l.role === "before");
    legend();
    draw();
    byId("frame").dataset.ready = mine;
  }

  // ---- colours -------------------------------------------------------------------------------

  function ramp(colours, share) {
    const place = Math.min(Math.max(share, 0), 1) * (colours.length - 1);
    const low = Math.min(Math.floor(place), colours.length - 2), part = place - low;
    return colours[low].map((from, i) => from + (colours[low + 1][i] - from) * part);
  }

  // Fields and misfits have no outline: they are smooth and everywhere.
  const canOutline = () => over && !["field", "signed", "share"].includes(over.layer.kind);
  const outlined = () => shown.outline && canOutline();
  const coloursOf = (kind) =>
    ({ signed: BALANCE, field: SEA, labels: [1, 2, 3, 4, 5, 6].map(hue) }[kind] || FIRE);

  // Colours of neighbouring numbers are far apart: steps of the golden angle around the circle.
  function hue(number) {
    const angle = number * 137.508, light = 0.45 + 0.2 * (number % 3) / 2;
    const spread = 0.9 * Math.min(light, 1 - light);
    return [0, 8, 4].map((shift) => {
      const place = (shift + angle / 30) % 12;
      return 255 * (light - spread * Math.max(-1, Math.min(place - 3, 9 - place, 1)));
    });
  }

  function colour(volume, value) {
    if (volume.layer.kind === "labels")
      return [...hue(value), !value ? 0 : !shown.label || shown.label === value ? 1 : FAINT];
    const share = value / volume.top;
    if (volume.layer.kind === "signed")
      return [...ramp(BALANCE, (share + 1) / 2), Math.min(1, 3 * Math.abs(share))];
    if (volume.layer.kind === "field") return [...ramp(SEA, share), 1];
    return [...ramp(FIRE, share), Math.min(1, 4 * share)];
  }

  const written = (number) => Number(number.toPrecision(3)).toString();

  function inWords(volume, value) {
    switch (volume.layer.kind) {
      case "density": return written(Math.expm1(value) * offset);
      case "percent": return written(value) + " %";
      case "signed": return "volume x " + written(Math.exp(value));
      case "field": return written(value) + " mm";
      case "labels": return value ? volume.layer.names[value - 1] : "no label";
      default: return written(value);
    }
  }

  function legend() {
    const place = byId("legend");
    place.replaceChildren();
    const entry = (text, colours) => {
      const item = document.createElement("span"), bar = document.createElement("i");
      const stops = colours.map((c) => `rgb(${c.map(Math.round).join(",")})`);
      bar.style.background = `linear-gradient(to right, ${stops.join(",")})`;
      item.append(bar, text);
      place.append(item);
    };
    const range = (volume, top) =>
      (volume.layer.kind === "signed" ? inWords(volume, -top) : "0") + " to " + inWords(volume, top);
    const lack = (volume) => (volume.missing ? " (all tracts: the page lacks this one)" : "");
    entry(`${base.layer.title}: ${range(base, base.top / shown.brightness)}${lack(base)}`,
      [[0, 0, 0], [255, 255, 255]]);
    if (over && over.layer.kind === "labels")
      entry(`${over.layer.title}: ${over.layer.names.length}, each in its colour or outlined`,
        outlined() ? [LINE, LINE] : coloursOf("labels"));
    else if (over && shown.overlay !== "grid" && !outlined())
      entry(`${over.layer.title}: ${range(over, over.top)}${lack(over)}`,
        coloursOf(over.layer.kind));
    if (outlined() && over.layer.kind !== "labels")
      entry(`line: ${inWords(over, over.top * OUTLINE)} of ${over.layer.title}`, [LINE, LINE]);
    if (shown.overlay === "grid")
      entry(`${over.layer.title}: lines of the grid, drawn where its points go`,
        [LINE, LINE]);
  }

  // ---- slices --------------------------------------------------------------------------------

  // One view: a runs to the right, b upwards, the slice is taken across `fixed`.
  const planes = dims === 2 ? [[0, 1, null]] : [[1, 2, 0], [0, 2, 1], [0, 1, 2]];
  const views = planes.map(([a, b, fixed]) => {
    const figure = document.createElement("figure"), canvas = document.createElement("canvas");
    const caption = document.createElement("figcaption"), slider = document.createElement("input");
    const name = fixed === null ? "image" : NAMES[ends[fixed]];
    figure.style.flexGrow = shape[a] * spacing[a];
    canvas.tabIndex = 0;
    canvas.dataset.view = name;
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", name + " slice");
    figure.append(canvas, caption);
    if (fixed !== null) {
      Object.assign(slider, { type: "range", min: 0, max: shape[fixed] - 1, step: 1 });
      slider.dataset.axis = fixed;
      slider.setAttribute("aria-label", name + " slice number");
      slider.addEventListener("input", () => move(fixed, Number(slider.value)));
      figure.append(slider);
    }
    byId("frame").append(figure);
    return { a, b, fixed, canvas, caption, slider, name };
  });

  function move(axis, to) {
    shown.cell[axis] = Math.min(Math.max(Math.round(to), 0), shape[axis] - 1);
    draw();
  }

  // The slice of a volume as a small picture, a pixel a voxel.
  function picture(volume, view, paint) {
    const { a, b, fixed } = view, step = volume.layer.step;
    const width = volume.cells[a], height = volume.cells[b];
    const small = document.createElement("canvas");
    [small.width, small.height] = [width, height];
    const context = small.getContext("2d"), data = context.createImageData(width, height);
    let start = 0;
    if (fixed !== null)
      start = Math.min(Math.floor(shown.cell[fixed] / step), volume.cells[fixed] - 1)
        * volume.strides[fixed];
    for (let j = 0, pixel = 0; j < height; j++) {
      let i = start + (height - 1 - j) * volume.strides[b];
      for (let column = 0; column < width; column++, i += volume.strides[a], pixel += 4)
        data.data.set(paint(volume.value(i)), pixel);
    }
    context.putImageData(data, 0, 0);
    return small;
  }

  function draw() {
    if (!base) return;
    for (const view of views) {
      const { a, b, fixed, canvas } = view;
      const width = Math.max(1, Math.round(canvas.clientWidth * (window.devicePixelRatio || 1)));
      const zoom = width / (shape[a] * spacing[a]); // pixels a millimetre
      [canvas.width, canvas.height] = [width, Math.max(1, Math.round(shape[b] * spacing[b] * zoom))];
      const context = canvas.getContext("2d");
      const place = (small, volume) => { // a block at the end of an axis may reach over the edge
        const step = volume.layer.step, tall = volume.cells[b] * step * spacing[b] * zoom;
        context.drawImage(small, 0, canvas.height - tall,
          volume.cells[a] * step * spacing[a] * zoom, tall);
      };
      const grey = (value) => {
        const level = 255 * Math.min(1, Math.abs(value) / base.top * shown.brightness);
        return [level, level, level, 255];
      };
      context.imageSmoothingEnabled = false;
      place(picture(base, view, grey), base);
      if (over && shown.overlay === "grid") lines(context, view, zoom);
      else if (outlined()) outline(context, view, zoom);
      else if (over) {
        context.imageSmoothingEnabled = over.layer.step > 1; // labels have 1
        place(picture(over, view, (value) => {
          const [red, green, blue, alpha] = colour(over, value);
          return [red, green, blue, 255 * alpha * shown.opacity];
        }), over);
      }
      cross(context, view, zoom);
      if (fixed !== null) {
        view.slider.value = shown.cell[fixed];
        view.caption.textContent =
          `${view.name} ${shown.cell[fixed] + 1} of ${shape[fixed]}`;
      } else view.caption.textContent = "";
    }
    where();
  }

  function stroke(context) {
    context.strokeStyle = `rgba(${LINE.join(",")}, ${shown.opacity})`;
    context.lineWidth = 1.5 * (window.devicePixelRatio || 1);
    context.stroke();
  }

  // The sides of voxels between a value above the outline's and one below it, or of labels.
  function outline(context, view, zoom) {
    const { a, b, fixed } = view, { cells, strides, value, layer } = over;
    const [wide, tall] = [a, b].map((axis) => layer.step * spacing[axis] * zoom);
    const bottom = context.canvas.height, limit = over.top * OUTLINE;
    let start = 0;
    if (fixed !== null)
      start = Math.min(Math.floor(shown.cell[fixed] / layer.step), cells[fixed] - 1) * strides[fixed];
    const region = layer.kind !== "labels" ? (read) => Number(read > limit)
      : shown.label ? (read) => Number(read === shown.label) : (read) => read;
    const zone = (i, j) => i < 0 || j < 0 || i >= cells[a] || j >= cells[b] ? 0
      : region(value(start + i * strides[a] + j * strides[b]));
    const side = (i, j, right, up) => {
      context.moveTo(i * wide, bottom - j * tall);
      context.lineTo((i + right) * wide, bottom - (j + up) * tall);
    };
    context.beginPath();
    for (let i = 0; i <= cells[a]; i++)
      for (let j = 0; j <= cells[b]; j++) {
        const here = zone(i, j);
        if (here !== zone(i - 1, j)) side(i, j, 0, 1);
        if (here !== zone(i, j - 1)) side(i, j, 1, 0);
      }
    stroke(context);
  }

  function lines(context, view, zoom) {
    const { a, b, fixed } = view, { cells, strides, component, layer } = over;
    const middle = (layer.step - 1) / 2, tall = context.canvas.height;
    let start = 0;
    if (fixed !== null)
      start = Math.min(Math.floor(shown.cell[fixed] / layer.step), cells[fixed] - 1) * strides[fixed];
    const thin = Math.max(1, Math.round(Math.max(...cells) / 32));
    const point = (i, j) => {
      const at = start + i * strides[a] + j * strides[b];
      return [
        ((i * layer.step + middle + 0.5) * spacing[a] + component(at, a)) * zoom,
        tall - ((j * layer.step + middle + 0.5) * spacing[b] + component(at, b)) * zoom];
    };
    context.beginPath();
    for (let i = 0; i < cells[a]; i += thin)
      for (let j = 0; j < cells[b]; j++) context[j ? "lineTo" : "moveTo"](...point(i, j));
    for (let j = 0; j < cells[b]; j += thin)
      for (let i = 0; i < cells[a]; i++) context[i ? "lineTo" : "moveTo"](...point(i, j));
    stroke(context);
  }

  function cross(context, view, zoom) {
    const { a, b, canvas = context.canvas } = view, { width, height } = canvas;
    const x = (shown.cell[a] + 0.5) * spacing[a] * zoom;
    const y = height - (shown.cell[b] + 0.5) * spacing[b] * zoom;
    context.strokeStyle = "rgba(0, 255, 120, 0.55)";
    context.lineWidth = 1;
    context.beginPath();
    context.moveTo(x, 0); context.lineTo(x, height); context.moveTo(0, y); context.lineTo(width, y);
    context.stroke();
    const size = 12 * (window.devicePixelRatio || 1);
    context.font = `${size}px system-ui, sans-serif`;
    context.fillStyle = "#ffd75e";
    context.textBaseline = "middle";
    context.fillText(ends[a][0], 4, height / 2);
    context.textAlign = "right";
    context.fillText(ends[a][1], width - 4, height / 2);
    context.textAlign = "center";
    context.fillText(ends[b][1], width / 2, size * 0.7);
    context.fillText(ends[b][0], width / 2, height - size * 0.7);
    context.textAlign = "left";
  }

  function where() {
    const cell = shown.cell;
    const world = [0, 1, 2].map((row) =>
      cell.reduce((sum, i, axis) => sum + affine[row][axis] * i, affine[row][3]));
    const read = (volume) => {
      const inside = cell.map((i, axis) =>
        Math.min(Math.floor(i / volume.layer.step), volume.cells[axis] - 1));
      return `${volume.layer.title}: ${inWords(volume, volume.value(volume.at(inside)))}`;
    };
    const parts = [`at ${world.map((n) => n.toFixed(1)).join(", ")} mm`, read(base)];
    if (over) parts.push(read(over));
    byId("where").textContent = parts.join(" · ");
  }

  // ---- controls ------------------------------------------------------------------------------

  function option(parent, value, text) {
    const made = document.createElement("option");
    made.value = value;
    made.textContent = text;
    parent.append(made);
  }

  function groups(select, layers, value) {
    for (const title of new Set(layers.map((layer) => layer.group))) {
      const group = document.createElement("optgroup");
      group.label = title;
      for (const layer of layers.filter((one) => one.group === title))
        option(group, value(index.layers.indexOf(layer)), layer.title);
      select.append(group);
    }
  }

  // What a subject's layers show, apart from its images: value, role, words.
  const OF_SUBJECT = [["grid", "field", "deformed grid"], ["size", "field", "displacement"],
    ["growth", "growth", "local growth"], ["misfit", "misfit", "local misfit"]];

  function overlays() {
    const select = byId("overlay");
    select.replaceChildren();
    option(select, "none", "none");
    if (shown.subject !== undefined) {
      const group = document.createElement("optgroup");
      group.label = `Registration of ${shown.subject}`;
      for (const [value, role, text] of OF_SUBJECT)
        if (layerOf(shown.subject, role)) option(group, value, text);
      if (group.children.length) select.append(group);
    }
    const further = index.layers.filter((layer) => layer.role === "overlay");
    groups(select, [...further, ...images], (number) => "layer " + number);
    select.value = shown.overlay;
  }

  // The list of labels belongs to the overlay; a chosen one is looked for.
  let listed = null;
  function labels() {
    const layer = over && over.layer.kind === "labels" ? over.layer : null;
    byId("label-label").hidden = !layer;
    if (layer === listed) return;
    [listed, shown.label] = [layer, 0];
    byId("label").replaceChildren();
    option(byId("label"), 0, "all labels");
    (layer ? layer.names : []).forEach((name, place) => option(byId("label"), place + 1, name));
  }

  // The voxel of a label that is nearest to its middle.
  function middle(volume, label) {
    const { cells, strides, value } = volume, size = cells.reduce((a, b) => a * b, 1);
    const place = (i) => cells.map((n, axis) => Math.floor(i / strides[axis]) % n);
    const sum = cells.map(() => 0);
    let count = 0, nearest = null, least = Infinity;
    for (let i = 0; i < size; i++)
      if (value(i) === label) {
        place(i).forEach((n, axis) => { sum[axis] += n; });
        count++;
      }
    for (let i = 0; i < size; i++)
      if (value(i) === label) {
        const far = Math.hypot(...place(i).map((n, axis) => (n - sum[axis] / count) * spacing[axis]));
        if (far < least) [least, nearest] = [far, place(i)];
      }
    return nearest;
  }

  function choose(number) {
    shown.image = number;
    shown.subject = index.layers[number].subject || shown.subject;
    byId("image").value = number;
    overlays();
    return load();
  }

  const images = index.layers.filter((layer) => layer.role === "image");
  groups(byId("image"), images, (number) => number);
  overlays();
  byId("image").value = shown.image;
  option(byId("tract"), -1, "all tracts");
  index.tracts.forEach((name, number) => option(byId("tract"), number, name));
  byId("tract-label").hidden = index.tracts.length === 0;
  byId("image").addEventListener("change", (event) => choose(Number(event.target.value)));
  byId("overlay").addEventListener("change", (event) => { shown.overlay = event.target.value; load(); });
  byId("tract").addEventListener("change", (event) => { shown.tract = Number(event.target.value); load(); });
  byId("label").addEventListener("change", (event) => {
    shown.label = Number(event.target.value);
    if (shown.label) shown.cell = middle(over, shown.label);
    draw();
  });
  byId("outline").checked = shown.outline;
  byId("outline").addEventListener("change", (event) => { shown.outline = event.target.checked; load(); });
  byId("before").addEventListener("change", (event) => { shown.before = event.target.checked; load(); });
  for (const name of ["opacity", "brightness"])
    byId(name).addEventListener("input", (event) => {
      shown[name] = Number(event.target.value);
      legend();
      draw();
    });

  for (const view of views) {
    const { a, b, fixed, canvas } = view;
    const point = (event) => {
      const box = canvas.getBoundingClientRect();
      shown.cell[a] = Math.min(Math.max(Math.floor((event.clientX - box.left) / box.width * shape[a]), 0), shape[a] - 1);
      move(b, Math.floor((1 - (event.clientY - box.top) / box.height) * shape[b]));
    };
    canvas.addEventListener("pointerdown", (event) => {
      canvas.focus({ preventScroll: true });
      canvas.setPointerCapture(event.pointerId);
      point(event);
    });
    canvas.addEventListener("pointermove", (event) => { if (event.buttons) point(event); });
    if (fixed === null) continue;
    // Only in a view that was clicked: the wheel elsewhere scrolls the page, as everywhere.
    canvas.addEventListener("wheel", (event) => {
      if (document.activeElement !== canvas) return;
      event.preventDefault();
      move(fixed, shown.cell[fixed] + (event.deltaY < 0 ? 1 : -1));
    }, { passive: false });
    canvas.addEventListener("keydown", (event) => {
      const step = { ArrowUp: 1, ArrowRight: 1, PageUp: 10, ArrowDown: -1, ArrowLeft: -1, PageDown: -10 }[event.key];
      if (step === undefined) return;
      event.preventDefault();
      move(fixed, shown.cell[fixed] + step);
    });
  }

  // Names of the viewer's subjects in the table of subjects lead to the viewer.
  for (const row of document.querySelectorAll("#subjects tr")) {
    const cell = row.cells[0];
    const number = index.layers.findIndex(
      (layer) => layer.role === "image" && layer.subject === cell.textContent);
    if (number < 0) continue;
    const button = document.createElement("button");
    button.textContent = cell.textContent;
    button.title = "show in the viewer";
    button.addEventListener("click", async () => {
      await choose(number);
      byId("frame").scrollIntoView({ block: "center" });
    });
    cell.replaceChildren(button);
  }

  if (typeof DecompressionStream === "undefined") {
    byId("old").hidden = false;
    return;
  }
  byId("section").hidden = false;
  new ResizeObserver(draw).observe(byId("frame"));
  load();
})();
