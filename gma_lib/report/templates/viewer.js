// The pair viewer: layers of one pair under one zoom, with the values of the pixel that is pointed at.
"use strict";
(() => {
  const head = JSON.parse(document.getElementById("pairs").textContent);
  const $ = (id) => document.getElementById(id);
  if ($("ways")) $("ways").hidden = window !== window.top; // within the notebook's page, which has its own
  if (location.protocol === "about:") { // within JupyterLab: files beside the page are out of reach
    const total = head.pairs.length;
    head.pairs = head.pairs.filter((entry) => !entry.file);
    if (head.pairs.length < total) $("count").textContent = `${head.pairs.length} of ${total} pairs can be opened within JupyterLab, all of them in the page itself.`;
  }
  const view = $("view");
  const UNKNOWN = -32768; // in packed flow
  const state = { left: "computed flow", before: "true flow", right: "", split: 0.5, update: 0, zoom: 1, x: 0.5, y: 0.5 };
  const held = new Map(); // fingers and buttons: id -> last place
  const arriving = new Map(); // of files that were asked for: title of the pair -> what takes it
  let pair = null, point = null, chosen = null, shown = 0, movesDivider = false, dragged = false;
  window.gmaPair = (stored) => arriving.get(stored.title)?.(stored); // each such file calls it

  // --- unpacking ---

  async function inflate(text) {
    const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
    return new Uint8Array(await new Response(stream).arrayBuffer());
  }

  // u and v as whole multiples of packed.step, stored as what left, upper and upper left neighbours do not predict
  async function readFlow(packed, width, height) {
    const bytes = await inflate(packed.data), count = width * height;
    return [0, 1].map((component) => {
      const high = bytes.subarray(2 * component * count), low = high.subarray(count), values = new Int16Array(count);
      for (let y = 0, i = 0; y < height; y++) {
        for (let x = 0; x < width; x++, i++) {
          const folded = (high[i] << 8) | low[i];
          values[i] = ((folded >>> 1) ^ -(folded & 1)) + (x ? values[i - 1] : 0)
            + (y ? values[i - width] - (x ? values[i - width - 1] : 0) : 0);
        }
      }
      return values;
    });
  }

  async function readImage(data) {
    const image = new Image();
    image.src = data;
    await image.decode();
    return image;
  }

  function loadBeside({ file, title }) {
    return new Promise((done, failed) => {
      const script = document.createElement("script");
      arriving.set(title, done);
      script.src = file;
      script.onerror = () => failed(new Error(`${file} is not beside this page: unpack the whole archive, or open the page where it was written.`));
      document.head.append(script);
    });
  }

  async function unpack(entry) {
    const stored = entry.file ? await loadBeside(entry) : entry;
    const { width, height } = stored;
    const flows = [...stored.updates, { ...stored.flow, number: stored.num_updates }];
    const [frame1, frame2] = await Promise.all([readImage(stored.frame1), readImage(stored.frame2)]);
    const fields = await Promise.all(flows.map(async (one) => ({ ...one, uv: await readFlow(one, width, height) })));
    const truth = stored.truth && { ...stored.truth, uv: await readFlow(stored.truth, width, height) };
    const bits = stored.occluded && await inflate(stored.occluded);
    const attention = stored.attention && { ...stored.attention, values: await inflate(stored.attention.data) };
    return { ...stored, frame1, frame2, fields, truth, bits, attention, source: stored.attention?.point, drawn: new Map() };
  }

  // --- values ---

  const valueAt = (field, i) => field.uv[0][i] === UNKNOWN ? null : field.uv.map((values) => values[i] * field.step);
  const isOccluded = (i) => Boolean(pair.bits && (pair.bits[i >> 3] >> (7 - (i & 7))) & 1);

  // how much the chosen point's block of cells looks at a pixel's: times an even spread, on a scale of 256 logarithmic steps
  function attentionAt(i) {
    const { rows, columns, side, left, top, values } = pair.attention;
    const block = (x, y) => Math.min(rows - 1, Math.floor((y + top) / side)) * columns + Math.min(columns - 1, Math.floor((x + left) / side));
    return values[block(...pair.source) * rows * columns + block(i % pair.width, Math.floor(i / pair.width))];
  }

  function errorAt(field, i) {
    const there = pair.truth && valueAt(pair.truth, i), found = valueAt(field, i);
    return there && found ? Math.hypot(found[0] - there[0], found[1] - there[1]) : null;
  }

  // --- layers ---

  function flowColour(value) {
    if (!value) return [0, 0, 0];
    const speed = Math.min(1, Math.hypot(...value) / pair.radius);
    const turn = Math.atan2(value[1], value[0]) / (2 * Math.PI);
    const rim = head.rim[Math.floor((turn + 1) * head.rim.length) % head.rim.length];
    return head.centre.map((grey, channel) => grey + speed * (rim[channel] - grey));
  }

  function errorColour(error) {
    return error === null ? [0, 0, 0] : head.errors[Math.round(Math.min(1, error / head.error_range) * 255)];
  }

  function paint(colourAt) {
    const canvas = document.createElement("canvas");
    canvas.width = pair.width;
    canvas.height = pair.height;
    const context = canvas.getContext("2d"), image = context.createImageData(pair.width, pair.height);
    for (let i = 0; i < pair.width * pair.height; i++) {
      const [red, green, blue, alpha = 255] = colourAt(i);
      image.data.set([red, green, blue, alpha], 4 * i);
    }
    context.putImageData(image, 0, 0);
    return canvas;
  }

  function paintOver(colourAt) { // colours over the grey first frame
    const canvas = paint(colourAt), context = canvas.getContext("2d");
    context.globalCompositeOperation = "destination-over";
    context.filter = "grayscale(1) brightness(1.2)";
    context.drawImage(pair.frame1, 0, 0);
    return canvas;
  }

  const LAYERS = {
    "frame 1": () => pair.frame1,
    "frame 2": () => pair.frame2,
    "true flow": () => pair.truth && paint((i) => flowColour(valueAt(pair.truth, i))),
    "computed flow": (field) => paint((i) => flowColour(valueAt(field, i))),
    error: (field) => pair.truth && paint((i) => errorColour(errorAt(field, i))),
    occlusion: () => pair.bits && paintOver((i) => (isOccluded(i) ? [230, 120, 0] : [0, 0, 0, 0])),
    attention: () => pair.attention && paintOver((i) => [...head.ratios[attentionAt(i)], 190]),
  };

  function layer(name) {
    const changes = { error: state.update, "computed flow": state.update, attention: pair.source };
    const key = `${name} ${changes[name]}`;
    if (!pair.drawn.has(key)) pair.drawn.set(key, LAYERS[name](pair.fields[state.update]));
    return pair.drawn.get(key);
  }

  // --- drawing ---

  function place() { // where the frame lies in the canvas, in CSS pixels
    const box = view.getBoundingClientRect();
    const scale = Math.min(box.width / pair.width, box.height / pair.height) * state.zoom;
    return { box, scale, left: box.width / 2 - state.x * pair.width * scale, top: box.height / 2 - state.y * pair.height * scale };
  }

  function draw() {
    const { box, scale, left, top } = place(), ratio = window.devicePixelRatio || 1;
    view.width = Math.round(box.width * ratio);
    view.height = Math.round(box.height * ratio);
    const context = view.getContext("2d"), edge = state.right ? state.split * box.width : box.width;
    const show = (name, from, to, align) => {
      context.save();
      context.beginPath();
      context.rect(from, 0, to - from, box.height);
      context.clip();
      context.imageSmoothingEnabled = scale * ratio < 2;
      context.drawImage(layer(name), left, top, pair.width * scale, pair.height * scale);
      context.font = "600 13px system-ui, sans-serif";
      const wide = context.measureText(name).width + 12, x = align === "left" ? from + 6 : to - wide - 6;
      context.fillStyle = "rgba(0, 0, 0, .65)";
      context.fillRect(x, 6, wide, 22);
      context.fillStyle = "#fff";
      context.fillText(name, x + 6, 21);
      context.restore();
    };
    context.scale(ratio, ratio);
    show(state.left, 0, edge, "left");
    if (state.right) {
      show(state.right, edge, box.width, "right");
      context.fillStyle = "#fff";
      context.fillRect(edge - 1.5, 0, 3, box.height);
    }
    if (point) mark(context, point, Math.max(4, scale / 2), "#fff");
    if ([state.left, state.right].includes("attention")) mark(context, pair.source, 8, "#ff0");

    function mark(on, [x, y], half, colour) {
      for (const [ink, line] of [["#000", 4], [colour, 2]]) {
        on.strokeStyle = ink;
        on.lineWidth = line;
        on.strokeRect(left + (x + 0.5) * scale - half, top + (y + 0.5) * scale - half, 2 * half, 2 * half);
      }
    }
  }

  function tell() {
    const field = pair.fields[state.update], i = point && point[1] * pair.width + point[0];
    const digits = (step) => (step > 0.02 ? 1 : 2);
    const uv = (one) => {
      const value = one && point && valueAt(one, i);
      return value ? value.map((part) => part.toFixed(digits(one.step))).join(", ") : "–";
    };
    const error = point && errorAt(field, i), epe = field.epe;
    $("pixel").textContent = point ? `${point.join(", ")}${isOccluded(i) ? " (occluded)" : ""}` : "point at the picture";
    $("truth").textContent = uv(pair.truth);
    $("flow").textContent = uv(field);
    $("error").textContent = error === null ? "–" : `${error.toFixed(digits(field.step))} px`;
    $("epe").textContent = epe === null ? "–" : `${epe.toFixed(2)} px`;
    $("ratio").textContent = point && pair.attention ? `${(2 ** ((attentionAt(i) - 128) / 32)).toFixed(2)} × even` : "–";
    $("update-told").textContent = `after update ${field.number} of ${pair.num_updates}`;
  }

  function refresh() {
    for (const button of document.querySelectorAll("#layers button")) {
      button.disabled = !layer(button.value);
      button.hidden = button.value === "attention" && !pair.attention;
      button.setAttribute("aria-pressed", button.value === state.left);
    }
    for (const option of $("right").options) option.disabled = option.hidden = Boolean(option.value) && !layer(option.value);
    for (const part of document.querySelectorAll(".looks")) part.hidden = !pair.attention;
    $("right").value = state.right;
    $("split").disabled = !state.right;
    $("split").value = 100 * state.split;
    $("updates").hidden = pair.fields.length === 1;
    $("update").max = pair.fields.length - 1;
    $("update").value = state.update;
    view.style.touchAction = state.zoom > 1 ? "none" : "pan-y";
    tell();
    draw();
  }

  // --- moves ---

  function zoomBy(factor, x, y) { // about a place of the canvas, in CSS pixels; its middle unless given
    const { box, scale, left, top } = place();
    const [atX, atY] = [x ?? box.width / 2, y ?? box.height / 2];
    const [u, v] = [(atX - left) / scale / pair.width, (atY - top) / scale / pair.height];
    const zoom = Math.min(64, Math.max(1, state.zoom * factor)), change = state.zoom / zoom;
    moveTo(u + (state.x - u) * change, v + (state.y - v) * change, zoom);
  }

  function moveTo(x, y, zoom = state.zoom) { // the middle of what is seen, as shares of the frame
    const within = (share) => (zoom === 1 ? 0.5 : Math.min(1, Math.max(0, share)));
    Object.assign(state, { zoom, x: within(x), y: within(y) });
    refresh();
  }

  function pointAt(x, y) { // a pixel of the frame, or nothing outside
    point = x >= 0 && y >= 0 && x < pair.width && y < pair.height ? [x, y] : null;
    tell();
    draw();
  }

  function lookFrom(place) { // choose the point whose attention is shown
    if (!place || !pair.attention) return;
    pair.source = place;
    select("attention");
  }

  function select(name) {
    if (!layer(name)) return;
    if (name !== state.left) [state.before, state.left] = [state.left, name];
    refresh();
  }

  function flicker() {
    if (!state.right) return select(state.before);
    [state.left, state.right] = [state.right, state.left];
    refresh();
  }

  function step(control, by) {
    control.selectedIndex === undefined ? control.value = Number(control.value) + by
      : control.selectedIndex = Math.min(control.length - 1, Math.max(0, control.selectedIndex + by));
    control.dispatchEvent(new Event(control.selectedIndex === undefined ? "input" : "change"));
  }

  const KEYS = {
    " ": flicker,
    "+": () => zoomBy(1.5),
    "=": () => zoomBy(1.5),
    "-": () => zoomBy(1 / 1.5),
    Enter: () => lookFrom(point),
    0: () => moveTo(0.5, 0.5, 1),
    "[": () => step($("update"), -1),
    "]": () => step($("update"), 1),
    ",": () => step($("pair"), -1),
    ".": () => step($("pair"), 1),
  };
  Object.keys(LAYERS).forEach((name, i) => { KEYS[i + 1] = () => select(name); });
  const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

  function movePoint([right, down], by) {
    const [x, y] = point || [Math.floor(state.x * pair.width), Math.floor(state.y * pair.height)];
    const within = (place, side) => Math.min(side - 1, Math.max(0, place));
    const [newX, newY] = [within(x + by * right, pair.width), within(y + by * down, pair.height)];
    if (state.zoom > 1) moveTo(newX / pair.width, newY / pair.height);
    pointAt(newX, newY);
  }

  $("viewer").addEventListener("keydown", (event) => {
    const typed = event.target.matches("select, input");
    if (typed || event.ctrlKey || event.metaKey || event.altKey) return;
    if ((event.key === " " || event.key === "Enter") && event.target.matches("button, summary")) return;
    const move = ARROWS[event.key], act = move ? () => movePoint(move, event.shiftKey ? 10 : 1) : KEYS[event.key];
    if (!act) return;
    event.preventDefault();
    act();
  });

  view.addEventListener("pointerdown", (event) => {
    const { box } = place();
    view.setPointerCapture(event.pointerId);
    held.set(event.pointerId, [event.clientX, event.clientY]);
    dragged = false;
    movesDivider = Boolean(state.right) && Math.abs(event.clientX - box.left - state.split * box.width) < 24;
  });
  for (const kind of ["pointerup", "pointercancel"]) view.addEventListener(kind, (event) => held.delete(event.pointerId));
  view.addEventListener("click", () => { if (!dragged) lookFrom(point); });
  view.addEventListener("pointermove", (event) => {
    const { box, scale, left, top } = place(), last = held.get(event.pointerId);
    const [x, y] = [event.clientX - box.left, event.clientY - box.top];
    if (last && held.size === 2) {
      const other = [...held].find(([id]) => id !== event.pointerId)[1];
      const apart = (here) => Math.hypot(here[0] - other[0], here[1] - other[1]);
      zoomBy(apart([event.clientX, event.clientY]) / Math.max(1, apart(last)), x, y);
    } else if (last && movesDivider) {
      state.split = Math.min(1, Math.max(0, x / box.width));
      refresh();
    } else if (last) {
      moveTo(state.x - (event.clientX - last[0]) / scale / pair.width, state.y - (event.clientY - last[1]) / scale / pair.height);
    }
    if (last) {
      dragged ||= Math.hypot(event.clientX - last[0], event.clientY - last[1]) > 2;
      held.set(event.pointerId, [event.clientX, event.clientY]);
    }
    pointAt(Math.floor((x - left) / scale), Math.floor((y - top) / scale));
  });
  view.addEventListener("wheel", (event) => {
    if (!event.ctrlKey && document.activeElement !== view) return; // the page scrolls
    event.preventDefault();
    const { box } = place();
    zoomBy(Math.exp(-event.deltaY / 400), event.clientX - box.left, event.clientY - box.top);
  }, { passive: false });
  window.addEventListener("resize", () => pair && draw());

  // --- controls ---

  async function open(entry) { // what was chosen last is shown, whatever arrives last
    chosen = entry;
    try {
      $("told").textContent = "Opening …";
      const next = await unpack(entry);
      if (entry !== chosen) return;
      [pair, point, shown] = [next, null, head.pairs.indexOf(entry)];
      state.update = pair.fields.length - 1;
      if (pair.attention) state.left = "attention";
      if ([state.left, state.before, state.right].some((name) => name && !layer(name))) {
        Object.assign(state, { left: "computed flow", before: "frame 1", right: "" });
      }
      view.style.aspectRatio = `${pair.width} / ${pair.height}`;
      view.style.maxWidth = `${Math.max(20, 70 * pair.width / pair.height)}vh`;
      $("radius").textContent = `${Number(pair.radius.toPrecision(3))} px and more`;
      $("told").textContent = "";
      $("viewer").hidden = false;
      document.body.classList.add("live");
      moveTo(0.5, 0.5, 1);
    } catch (problem) {
      if (entry !== chosen) return;
      $("told").textContent = problem.message;
      $("pair").value = shown; // the pair before stays, under its own name
    }
  }

  Object.keys(LAYERS).forEach((name, i) => {
    const button = document.createElement("button");
    Object.assign(button, { type: "button", value: name, textContent: name, title: `key ${i + 1}` });
    button.addEventListener("click", () => select(name));
    $("layers").append(button);
    $("right").append(new Option(name, name));
  });
  head.pairs.forEach((entry, i) => $("pair").append(new Option(entry.title, i)));
  $("pair").addEventListener("change", () => open(head.pairs[$("pair").value]));
  $("right").addEventListener("change", () => { state.right = $("right").value; refresh(); });
  $("split").addEventListener("input", () => { state.split = $("split").value / 100; refresh(); });
  $("update").addEventListener("input", () => { state.update = Number($("update").value); refresh(); });
  $("in").addEventListener("click", () => zoomBy(1.5));
  $("out").addEventListener("click", () => zoomBy(1 / 1.5));
  $("all").addEventListener("click", () => moveTo(0.5, 0.5, 1));
  $("flicker").addEventListener("click", flicker);
  const wheel = $("wheel").getContext("2d"), circle = wheel.createImageData(64, 64);
  pair = { radius: 1 };
  for (let i = 0; i < 64 * 64; i++) {
    const u = ((i % 64) - 31.5) / 31.5, v = (Math.floor(i / 64) - 31.5) / 31.5;
    circle.data.set([...flowColour([u, v]), Math.hypot(u, v) <= 1 ? 255 : 0], 4 * i);
  }
  wheel.putImageData(circle, 0, 0);
  pair = null;
  for (const [bar, colours] of [["bar", head.errors], ["ratios", head.ratios.slice(64, 193)]]) {
    const stops = [0, 0.25, 0.5, 0.75, 1].map((share) => `rgb(${colours[Math.round(share * (colours.length - 1))].join()})`);
    $(bar).style.background = `linear-gradient(to right, ${stops.join()})`;
  }
  open(head.pairs[0]);
})();
