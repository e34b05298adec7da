// The budget, the switches, and what every law says there. The data are estimates on a grid of budgets, made where the
// laws were fitted; the page does no statistics.

// Switches are radio buttons, so that arrow keys and screen readers work as everywhere.
function switches(id, entries, chosen, choose) {
  const box = find(id).querySelector(".chips");
  box.replaceChildren();
  entries.forEach(({ value, text, why }) => {
    const label = make("label", why ? { class: "chip off", title: why } : { class: "chip" }, box);
    const input = make("input", { type: "radio", name: id, value }, label);
    input.checked = value === chosen;
    input.disabled = Boolean(why);
    input.addEventListener("change", () => choose(value));
    make("span", {}, label, why ? `${text} (not fitted)` : text);
  });
  find(id).hidden = entries.length < 2;
}

function gather() {
  const { n, c } = convention();
  const predicted = predictor()?.predicted;
  runs = n.map((size, i) => {
    const run = { name: DATA.runs.name[i], n: size, c: c[i], d: DATA.runs.d[i], loss: DATA.runs.loss[i] };
    return { ...run, ratio: run.d / size, predicted: predicted?.[i] ?? null };
  });
  if (state.convention === 0) {
    for (const each of DATA.held) {
      if (each.loss == null) continue;
      runs.push({ ...each, ratio: each.d / each.n, predicted: each.predicted[0], within: each.predicted, held: true });
    }
  }
  for (const run of runs) run.residual = run.predicted ? 100 * (run.loss / run.predicted - 1) : null;
}

function useConvention(index) {
  const budget = 10 ** state.budget;
  state.convention = index;
  if (law()?.missing || !law()) state.law = convention().choice;
  switches("laws", convention().laws.map((each, i) => ({ value: i, text: each.name, why: each.missing })), state.law, useLaw);
  const slider = find("budget");
  slider.min = convention().grid.start;
  slider.max = end();
  find("findings-here").innerHTML = convention().findings;
  const count = convention().warnings;
  find("warned").textContent = count
    ? `▲ ${count} warning${count > 1 ? "s" : ""} under this way of counting; read ${count > 1 ? "them" : "it"} before using these numbers.`
    : "";
  useBudget(Math.log10(budget));
}
function useLaw(index) { state.law = index; update(); }
function useView(name) { state.view = name; state.run = -1; update(); }
function useBudget(log) {
  state.budget = Math.min(Math.max(log, convention().grid.start), end());
  find("budget").value = state.budget;
  if (document.activeElement !== find("exact")) find("exact").value = (10 ** state.budget).toExponential(2).replace("+", "");
  update();
}

function update() {
  gather();
  answer();
  compare();
  draw();
  find("beside").hidden = !published().length || VIEWS[state.view].x !== "c" || state.view === "residual";
  const { convention: way, law: which, view } = state;
  const asked = `#counting=${way}&law=${which}&view=${view}&flops=${(10 ** state.budget).toExponential(3).replace("+", "")}`;
  try { history.replaceState(null, "", asked + (state.published >= 0 ? `&published=${state.published}` : "")); } catch { /* a page without address */ }
}

function answer() {
  const budget = 10 ** state.budget, words = [];
  for (const quantity of ["n", "d", "ratio", "loss"]) {
    const { show } = QUANTITIES[quantity], found = estimate(law(), quantity), box = find("answer-" + quantity);
    box.querySelector("b").textContent = found[0] == null ? "—" : show(found[0]);
    const between = interval(found, show);
    box.querySelector("small").textContent = found[0] == null ? "this approach has no loss curve" : between ? "95 %: " + between : "no interval";
    if (found[0] != null) words.push(`${QUANTITIES[quantity].name} ${show(found[0])}`);
  }
  find("budget").setAttribute("aria-valuetext", `${powerOfTen(budget)} FLOPs: ${words.join(", ")}`);
  const [first, last] = convention().reach;
  const beyond = budget / last;
  const far = find("reach");
  far.className = beyond > 1.0001 || budget < first ? "caution" : "soft";
  if (beyond > 1.0001) far.textContent = `${powerOfTen(budget)} FLOPs is ${plain(beyond)} times the largest run: extrapolated. The interval does not know of ways in which the law stops holding.`;
  else if (budget < first * 0.9999) far.textContent = `${powerOfTen(budget)} FLOPs is below the smallest run.`;
  else far.textContent = `${powerOfTen(budget)} FLOPs lies within the runs fitted.`;
}

function compare() {
  const body = find("compare").tBodies[0];
  body.replaceChildren();
  const rows = convention().laws.map((entry, i) => ({ entry, i })).filter(({ entry }) => !entry.missing);
  rows.push(...published().map((entry) => ({ entry, i: -1 })));
  for (const { entry, i } of rows) {
    const row = make("tr", i === state.law ? { class: "chosen", "aria-current": "true" } : i < 0 ? { class: "others" } : {}, body);
    const name = make("th", { scope: "row" }, row, i < 0 ? `${entry.name}, published` : entry.name);
    if (entry.text) make("small", {}, name).innerHTML = entry.text; // escaped where it was made
    const cell = (value, between) => {
      const box = make("td", {}, row, value);
      if (between) make("small", {}, box, between);
    };
    cell(entry.a[0].toFixed(2), interval(entry.a, (value) => value.toFixed(2)));
    for (const quantity of ["n", "d", "ratio", "loss"]) {
      const { show } = QUANTITIES[quantity], found = estimate(entry, quantity);
      cell(found[0] == null ? "—" : show(found[0]), interval(found, show));
    }
  }
  find("compare-budget").textContent = powerOfTen(10 ** state.budget);
}

function start() {
  const asked = new URLSearchParams(location.hash.slice(1)), whole = (name) => Number.parseInt(asked.get(name) ?? "", 10);
  if (DATA.conventions[whole("counting")]) state.convention = whole("counting");
  state.law = convention().laws[whole("law")]?.missing === undefined && convention().laws[whole("law")] ? whole("law") : convention().choice;
  if (VIEWS[asked.get("view")]) state.view = asked.get("view");
  state.published = convention().published[whole("published")] ? whole("published") : -1;
  const wanted = parseBudget(asked.get("flops") ?? "");
  state.budget = Math.log10(Number.isNaN(wanted) ? DATA.target : wanted);
  find("explore").hidden = false;
  switches("countings", DATA.conventions.map((each, i) => ({ value: i, text: each.name })), state.convention, useConvention);
  switches("views", Object.entries(VIEWS).map(([value, { name }]) => ({ value, text: name })), state.view, useView);
  make("option", { value: -1 }, find("published"), "none");
  convention().published.forEach(({ name }, i) => make("option", { value: i }, find("published"), name));
  find("published").value = state.published;
  find("published").addEventListener("change", (event) => { state.published = Number(event.target.value); update(); });
  find("budget").addEventListener("input", (event) => useBudget(Number(event.target.value)));
  find("exact").addEventListener("change", (event) => {
    const value = parseBudget(event.target.value), box = event.target, wrong = Number.isNaN(value);
    box.setAttribute("aria-invalid", String(wrong));
    find("wrong").textContent = wrong ? "A budget is a positive number of FLOPs, such as 5.8e23." : "";
    if (!wrong) {
      useBudget(Math.log10(value));
      const kept = 10 ** state.budget;
      if (Math.abs(Math.log(kept / value)) > 1e-6) {
        find("wrong").textContent = `Budgets here run from ${powerOfTen(10 ** convention().grid.start)} to ${powerOfTen(10 ** end())} FLOPs.`;
        box.value = kept.toExponential(2).replace("+", "");
      }
    }
  });
  find("exact").addEventListener("keydown", (event) => { if (event.key === "Enter") event.target.blur(); });
  const chart = find("chart-box");
  chart.addEventListener("pointermove", (event) => { const i = nearest(event); if (i >= 0) point(i, false); else if (event.pointerType === "mouse") unpoint(); });
  chart.addEventListener("pointerdown", (event) => { const i = nearest(event); if (i >= 0) point(i); else unpoint(); });
  chart.addEventListener("pointerleave", (event) => { if (event.pointerType === "mouse" && document.activeElement !== chart) unpoint(); });
  chart.addEventListener("blur", unpoint);
  chart.addEventListener("keydown", (event) => {
    if (!placed.length) return;
    const last = placed.length - 1, here = state.run;
    const next = { ArrowRight: Math.min(here + 1, last), ArrowLeft: here < 0 ? last : Math.max(here - 1, 0), Home: 0, End: last }[event.key];
    if (event.key === "Escape") unpoint();
    else if (next !== undefined) { point(next); event.preventDefault(); }
  });
  new ResizeObserver(() => { if (find("chart").clientWidth !== start.width) { start.width = find("chart").clientWidth; draw(); } }).observe(find("chart"));
  useConvention(state.convention);
}
