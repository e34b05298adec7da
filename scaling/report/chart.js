// The chart: axes, runs, laws, and one run at a time by pointer or arrow keys.

function make(name, attributes = {}, parent = null, text = "") {
  const chart = ["svg", "g", "path", "line", "circle", "text", "rect", "polygon", "title"].includes(name);
  const element = chart ? document.createElementNS(SVG, name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (text) element.textContent = text;
  if (parent) parent.append(element);
  return element;
}

// Axes.
function ticks(low, high, wanted, linear) {
  if (linear || high / low < 8) {
    const rough = (high - low) / wanted, power = 10 ** Math.floor(Math.log10(rough));
    const step = power * ([1, 2, 2.5, 5, 10].find((each) => each * power >= rough) ?? 10);
    const found = [];
    for (let i = Math.ceil(low / step - 1e-9); i * step <= high * (1 + 1e-12) + 1e-12; i++) found.push(Number((i * step).toPrecision(12)));
    return found;
  }
  let best = [];
  for (const mantissas of [[1], [1, 3], [1, 2, 5], [1, 1.5, 2, 3, 5, 7]]) {
    const found = [];
    for (let decade = Math.floor(Math.log10(low)); decade <= Math.ceil(Math.log10(high)); decade++) {
      for (const mantissa of mantissas) {
        const value = Number(`${mantissa}e${decade}`);
        if (value >= low && value <= high) found.push(value);
      }
    }
    if (mantissas.length === 1 && found.length > wanted) {
      return found.filter((_, i) => i % Math.ceil(found.length / wanted) === 0);
    }
    if (found.length <= wanted) best = found;
  }
  return best;
}
function axis(values, quantity, pixels, room) {
  const { linear } = QUANTITIES[quantity], there = values.filter((value) => value != null && (linear || value > 0));
  const scale = linear ? (value) => value : Math.log;
  let low = Infinity, high = -Infinity;
  for (const value of there) { low = Math.min(low, scale(value)); high = Math.max(high, scale(value)); }
  if (!(high > low)) [low, high] = [low - 0.5, high + 0.5];
  const margin = room * (high - low);
  low -= margin; high += margin;
  const place = (value) => pixels[0] + (scale(value) - low) / (high - low) * (pixels[1] - pixels[0]);
  const back = linear ? (x) => x : Math.exp;
  return { place, ends: [back(low), back(high)], linear };
}

function shades(quantity) {
  const logs = runs.map((run) => Math.log(run[quantity]));
  let low = Infinity, high = -Infinity;
  for (const value of logs) { low = Math.min(low, value); high = Math.max(high, value); }
  const shade = (value) => Math.min(Math.floor((Math.log(value) - low) / (high - low || 1) * RAMP), RAMP - 1);
  return { shade: (value) => `var(--ramp${Math.max(shade(value), 0)})`, ends: [Math.exp(low), Math.exp(high)] };
}

function draw() {
  const box = find("chart"), view = VIEWS[state.view], along = view.x === "c";
  const width = Math.max(box.clientWidth, 280), height = Math.round(Math.min(Math.max(width * 0.56, 300), 500));
  const frame = { left: 58, right: width - 14, top: 14, bottom: height - 46 };
  const budget = 10 ** state.budget, shown = runs.filter((run) => run[view.y] != null && run[view.x] != null);
  const svg = make("svg", { viewBox: `0 0 ${width} ${height}`, width, height, "aria-hidden": "true" });
  if (!shown.length) {
    make("text", { x: width / 2, y: height / 2, "text-anchor": "middle" }, svg, "No law that predicts single runs could be fitted.");
    box.replaceChildren(svg);
    placed = [];
    legend(view, null, []);
    return;
  }
  const lines = along && view.y !== "residual" ? curves(view.y, shown, budget) : [];
  const inView = lines.flatMap((line) => line.published ? [] : line.points.map((point) => point[1]));
  const xs = shown.map((run) => run[view.x]);
  if (along && view.y !== "residual") xs.push(budget, Math.max(...xs) * 3);
  const x = axis(xs, view.x, [frame.left, frame.right], 0.03);
  const y = axis([...shown.map((run) => run[view.y]), ...inView], view.y, [frame.bottom, frame.top], 0.06);

  const grid = make("g", { class: "grid" }, svg), across = width < 520 ? 4 : 6;
  for (const tick of ticks(...x.ends, across, false)) {
    make("line", { x1: x.place(tick), x2: x.place(tick), y1: frame.top, y2: frame.bottom }, grid);
    make("text", { x: x.place(tick), y: frame.bottom + 18, "text-anchor": "middle" }, grid, (QUANTITIES[view.x].tick ?? QUANTITIES[view.x].show)(tick));
  }
  for (const tick of ticks(...y.ends, 6, y.linear)) {
    make("line", { x1: frame.left, x2: frame.right, y1: y.place(tick), y2: y.place(tick) }, grid);
    make("text", { x: frame.left - 8, y: y.place(tick) + 4, "text-anchor": "end" }, grid, (QUANTITIES[view.y].tick ?? QUANTITIES[view.y].show)(tick));
  }
  make("text", { x: frame.right, y: height - 6, "text-anchor": "end", class: "title" }, svg, QUANTITIES[view.x].label);
  make("text", { x: 4, y: 11, class: "title" }, svg, QUANTITIES[view.y].label);

  const clip = make("svg", { x: frame.left, y: frame.top - 6, width: frame.right - frame.left, height: frame.bottom - frame.top + 6, viewBox: `${frame.left} ${frame.top - 6} ${frame.right - frame.left} ${frame.bottom - frame.top + 6}` }, svg);
  const tint = shades(view.shade);
  const path = (points) => points.map(([px, py], i) => `${i ? "L" : "M"}${x.place(px).toFixed(1)} ${y.place(py).toFixed(1)}`).join("");
  if (y.linear) make("line", { class: "zero", x1: frame.left, x2: frame.right, y1: y.place(0), y2: y.place(0) }, clip);
  if (state.view === "loss" && state.convention === 0) {
    for (const curve of convention().curves) {
      make("path", { class: "curve", d: path(curve.c.map((c, i) => [c, curve.loss[i]])), style: `stroke:${tint.shade(curve.n)}` }, clip);
    }
  }
  if (state.view === "isoflop") {
    for (const one of convention().parabolas) {
      const points = [];
      for (let i = 0; i <= 50; i++) {
        const size = one.from * (one.to / one.from) ** (i / 50), u = Math.log(size) - one.centre, [c0, c1, c2] = one.coefficients;
        points.push([size, Math.exp(c0 + c1 * u + c2 * u * u)]);
      }
      make("path", { class: one.left_out ? "parabola out" : "parabola", d: path(points), style: `stroke:${tint.shade(one.flops)}` }, clip);
    }
  }
  for (const line of lines) {
    if (line.band.length) make("path", { class: "band", d: path(line.band) + "Z" }, clip);
  }
  const dots = make("g", {}, clip), radius = shown.length > 150 ? 3 : width < 520 ? 3.5 : 4.5;
  placed = shown.map((run) => ({ run, x: x.place(run[view.x]), y: y.place(run[view.y]) }));
  placed.sort((one, other) => one.x - other.x || one.y - other.y);
  for (const { run, x: px, y: py } of placed) {
    if (!run.held) make("circle", { cx: px.toFixed(1), cy: py.toFixed(1), r: radius, style: `fill:${tint.shade(run[view.shade])}` }, dots);
  }
  for (const line of lines) {
    make("path", { class: line.class, d: path(line.points.filter((point) => point[0] <= convention().reach[1] * 1.0001 || line.class !== "law chosen")) }, clip);
    if (line.class === "law chosen") make("path", { class: "law chosen beyond", d: path(line.points.filter((point) => point[0] >= convention().reach[1] * 0.9999)) }, clip);
  }
  if (along && view.y !== "residual") {
    make("line", { class: "budget", x1: x.place(budget), x2: x.place(budget), y1: frame.top, y2: frame.bottom }, clip);
    const here = estimate(law(), view.y);
    if (here[0] != null) {
      if (here[1] != null) make("line", { class: "error", x1: x.place(budget), x2: x.place(budget), y1: y.place(here[1]), y2: y.place(here[2]) }, clip);
      make("circle", { class: "here", cx: x.place(budget), cy: y.place(here[0]), r: 6 }, clip);
    }
  }
  for (const { run, x: px, y: py } of placed) if (run.held) star(clip, px, py);
  make("circle", { class: "ring", r: 9, cx: -99, cy: -99, id: "ring" }, clip);
  box.replaceChildren(svg);
  legend(view, tint, lines);
  if (state.run >= 0) point(Math.min(state.run, placed.length - 1), false);
  else unpoint();
}

function star(parent, cx, cy) {
  const points = [];
  for (let i = 0; i < 10; i++) {
    const size = i % 2 ? 4 : 9, angle = Math.PI * (i / 5 - 0.5);
    points.push(`${(cx + size * Math.cos(angle)).toFixed(1)},${(cy + size * Math.sin(angle)).toFixed(1)}`);
  }
  make("polygon", { class: "star", points: points.join(" ") }, parent);
}

// Optima along compute: the chosen law as a line with its band, the others thin.
function curves(quantity, shown, budget) {
  const first = Math.log10(Math.min(...shown.map((run) => run.c))), last = Math.log10(Math.max(budget, ...shown.map((run) => run.c * 3)));
  const grid = [], middle = Math.log10(convention().reach[1]);
  for (let i = 0; i <= 80; i++) grid.push(first + (last - first) * i / 80);
  grid.push(middle);
  grid.sort((one, other) => one - other);
  const found = [];
  const trace = (entry, kind, name) => {
    if (entry.missing || !entry[quantity]?.[0]) return;
    const values = grid.map((x) => [10 ** x, ...entry[quantity].map((part) => at(part, x))]).filter((row) => row[1] != null);
    const line = { name, class: kind, points: values.map(([c, value]) => [c, value]), band: [], published: kind.includes("published") };
    if (kind === "law chosen" && values.every((row) => row[2] != null)) {
      line.band = [...values.map((row) => [row[0], row[2]]), ...values.reverse().map((row) => [row[0], row[3]])];
    }
    found.push(line);
  };
  const beside = published()[state.published];
  if (beside) trace(beside, "law published", beside.name + ", published");
  convention().laws.forEach((entry, i) => { if (i !== state.law) trace(entry, `law other dash${i % 4}`, entry.name); });
  trace(law(), "law chosen", law().name);
  return found;
}

function legend(view, tint, lines) {
  const box = find("legend");
  box.replaceChildren();
  const item = (text) => make("span", { class: "item" }, box, "").appendChild(document.createTextNode(text)).parentNode;
  const sample = (into, name, attributes) => {
    const svg = make("svg", { width: 30, height: 12, "aria-hidden": "true" });
    make(name, attributes, svg);
    into.prepend(svg);
  };
  if (tint) {
    const scale = item(`shade: ${QUANTITIES[view.shade].name} ${(QUANTITIES[view.shade].show)(tint.ends[0])}`);
    const bar = make("span", { class: "bar" }, scale);
    const stops = [0, 8, 16, 24, 32, 39].map((i) => `var(--ramp${i})`).join(",");
    bar.style.background = `linear-gradient(to right,${stops})`;
    scale.append((QUANTITIES[view.shade].show)(tint.ends[1]));
  }
  [...lines].reverse().forEach((line) => {
    sample(item(line.name + (line.band.length ? ", 95 % band" : "")), "path", { d: "M1 6H29", class: line.class });
  });
  if (state.view === "loss" && state.convention === 0 && convention().curves.length) sample(item("loss in training"), "path", { d: "M1 6H29", class: "curve", style: "stroke:var(--ink-soft)" });
  if (state.view === "isoflop" && convention().parabolas.length) sample(item("parabola of one budget (dotted: left out)"), "path", { d: "M1 6H29", class: "parabola", style: "stroke:var(--ink-soft)" });
  if (runs.some((run) => run.held)) {
    const held = item("held-out run");
    const svg = make("svg", { width: 22, height: 18, "aria-hidden": "true" });
    star(svg, 11, 9);
    held.prepend(svg);
  }
  if (view.y === "residual" && predictor()) item(`predicted by ${predictor().name}`);
  if (view.x === "c" && view.y !== "residual") sample(item("the budget chosen"), "circle", { class: "here", cx: 15, cy: 6, r: 5 });
}

// One run, by pointer or by arrow keys.
function point(index, say = true) {
  state.run = index;
  const { run, x, y } = placed[index], tip = find("tip"), box = find("chart");
  find("ring").setAttribute("cx", x);
  find("ring").setAttribute("cy", y);
  tip.replaceChildren();
  make("b", {}, tip, run.held ? `${run.name} (held out)` : run.name);
  const list = make("dl", {}, tip);
  const row = (name, value) => { make("dt", {}, list, name); make("dd", {}, list, value); };
  row("N", short(run.n));
  row("D", short(run.d));
  row("C", powerOfTen(run.c));
  row("D / N", short(run.ratio));
  row("loss", run.loss.toFixed(4));
  if (run.predicted != null) row("predicted", `${run.predicted.toFixed(4)} (${signed(run.residual)} %)`);
  if (run.within) row("95 %", `${run.within[1].toFixed(3)} to ${run.within[2].toFixed(3)}`);
  tip.hidden = false;
  // Beside the run where there is room, else in the half of the chart where the run is not.
  const room = { x: box.clientWidth - tip.offsetWidth, y: Math.max(box.clientHeight - tip.offsetHeight, 0) };
  const beside = [x + 16, x - 16 - tip.offsetWidth].find((left) => left >= 0 && left <= room.x);
  const half = y < box.clientHeight / 2 ? Math.max(room.y, y + 14) : Math.min(0, y - 14 - tip.offsetHeight);
  tip.style.left = `${beside ?? Math.min(Math.max(x - tip.offsetWidth / 2, 0), Math.max(room.x, 0))}px`;
  tip.style.top = `${beside === undefined ? half : Math.min(Math.max(y - tip.offsetHeight / 2, 0), room.y)}px`;
  if (say) find("said").textContent = `${run.name}: ${[...list.children].map((each) => each.textContent).join(" ")}; run ${index + 1} of ${placed.length}`;
}
function unpoint() {
  state.run = -1;
  find("tip").hidden = true;
  find("ring")?.setAttribute("cx", -99);
}
function nearest(event) {
  const box = find("chart").getBoundingClientRect(), px = event.clientX - box.left, py = event.clientY - box.top;
  let best = -1, least = 28 ** 2;
  placed.forEach(({ x, y }, i) => {
    const far = (x - px) ** 2 + (y - py) ** 2;
    if (far < least) [best, least] = [i, far];
  });
  return best;
}

