// Numbers: read, written for people by the same rules as in Python, and interpolated on the grid of budgets.

const DATA = JSON.parse(document.getElementById("data").textContent);
const find = (id) => document.getElementById(id);
const SVG = "http://www.w3.org/2000/svg";
const RAMP = 40;
const QUANTITIES = {
  n: { name: "N", label: "parameters N", show: short },
  d: { name: "D", label: "training tokens D", show: short },
  ratio: { name: "D / N", label: "tokens a parameter, D / N", show: short },
  c: { name: "C, FLOPs", label: "compute C, FLOPs", show: powerOfTen },
  loss: { name: "loss", label: "held-out loss L, nats per token", show: (value) => value.toFixed(3), tick: plain },
  residual: { name: "difference", label: "measured over predicted, %", show: (value) => signed(value) + " %", tick: plain, linear: true },
};
const VIEWS = {
  loss: { name: "Loss by compute", x: "c", y: "loss", shade: "n" },
  n: { name: "Size by compute", x: "c", y: "n", shade: "loss" },
  d: { name: "Tokens by compute", x: "c", y: "d", shade: "loss" },
  ratio: { name: "Tokens a parameter", x: "c", y: "ratio", shade: "loss" },
  isoflop: { name: "Loss by size", x: "n", y: "loss", shade: "c" },
  residual: { name: "What the law misses", x: "c", y: "residual", shade: "n" },
};
const state = { convention: 0, law: 0, view: "loss", budget: 0, published: -1, run: -1 };
let runs = []; // of the convention shown, every quantity of each
let placed = []; // what can be pointed at, in pixels, ordered along x

function plain(value) { return String(Number(value.toPrecision(3))); }
function signed(value) { return (value < 0 ? "−" : "+") + Math.abs(value).toFixed(2); }
function short(value) {
  if (value >= 0.9995e15) return powerOfTen(value);
  for (const [factor, suffix] of [[1e12, "T"], [1e9, "B"], [1e6, "M"], [1e3, "k"]]) {
    if (value >= 0.9995 * factor) return plain(value / factor) + suffix;
  }
  return plain(value);
}
function powerOfTen(value) {
  const [mantissa, exponent] = value.toExponential(1).split("e");
  const raised = [...String(Number(exponent))].map((digit) => "⁰¹²³⁴⁵⁶⁷⁸⁹"[digit] ?? "⁻").join("");
  const front = mantissa.endsWith(".0") ? mantissa.slice(0, -2) : mantissa;
  return front === "1" ? "10" + raised : front + "×10" + raised;
}
function parseBudget(text) {
  const clean = text.trim().replace(/[\s,_]/g, "").replace(/flops?$/i, "").replace(/[x×*·]?10\^/i, "e").replace(/^e/, "1e");
  const value = Number(clean);
  return clean && Number.isFinite(value) && value > 0 ? value : NaN;
}

const convention = () => DATA.conventions[state.convention];
const law = () => convention().laws[state.law];
// Published laws were fitted to larger runs than some tables hold; far below, what they say means nothing.
const published = () => (10 ** state.budget >= convention().published_from ? convention().published : []);
// The law that says something of single runs: the chosen one, or the first that does.
const predictor = () => (law().predicted ? law() : convention().laws.find((each) => each.predicted));
const end = () => convention().grid.start + (convention().grid.count - 1) * convention().grid.step;

// Cubic through the four nearest points of the grid, in log-log; null where the law says nothing.
function at(values, x) {
  if (!values) return null;
  const { start, step, count } = convention().grid;
  const place = Math.min(Math.max((x - start) / step, 0), count - 1);
  const first = Math.min(Math.max(Math.floor(place) - 1, 0), count - 4);
  let sum = 0;
  for (let i = 0; i < 4; i++) {
    if (values[first + i] == null) return null;
    let weight = 1;
    for (let j = 0; j < 4; j++) if (j !== i) weight *= (place - first - j) / (i - j);
    sum += weight * values[first + i];
  }
  return 10 ** sum;
}
function estimate(entry, quantity) {
  if (!entry[quantity]) return [null, null, null];
  return entry[quantity].map((values) => at(values, state.budget));
}

function interval([, low, high], show) {
  return low == null || high == null ? "" : `${show(low)} to ${show(high)}`;
}

