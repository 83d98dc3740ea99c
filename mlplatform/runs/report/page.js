"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const root = document.documentElement;
  const at = (id) => document.getElementById(id);
  const MANY = 10, ROUGH = 40;

  // ---- colours: of the page, as they are now ----
  const probe = document.createElement("span");
  probe.hidden = true;
  document.body.append(probe);
  const colour = (name) => {
    probe.style.color = `var(--${name})`;
    return getComputedStyle(probe).color;
  };
  const pale = (rgb, alpha) => rgb.replace(/^rgba?\(([^)]+)\)$/, (_, c) => `rgba(${c.split(/[ ,]+/).slice(0, 3).join(",")},${alpha})`);

  // ---- curves: steps come as differences ----
  const unpack = (curve) => {
    let step = 0;
    return { x: curve.x.map((gap) => (step += gap)), y: curve.y };
  };
  const unpackAll = (curves) => Object.fromEntries(Object.entries(curves || {}).map(([name, c]) => [name, unpack(c)]));
  const runs = data.runs.map((run) => ({ ...run, over: unpackAll(run.over), told: unpackAll(run.told), shown: true }));
  const state = { smoothing: 0.6, over: "steps", logx: false, logy: false };

  const interpolate = (table, step) => {
    const { x, y } = table;
    if (step <= x[0]) return y[0];
    let low = 0, high = x.length - 1;
    if (step >= x[high]) return y[high];
    while (high - low > 1) {
      const middle = (low + high) >> 1;
      if (x[middle] <= step) low = middle; else high = middle;
    }
    return y[low] + ((step - x[low]) / (x[high] - x[low])) * (y[high] - y[low]);
  };
  const places = (run, steps) => {
    const table = { tokens: run.over["train/tokens"], time: run.over.time }[state.over];
    return table && table.x.length ? steps.map((step) => interpolate(table, step)) : steps;
  };
  // An exponential mean whose memory is counted in typical gaps, so that thinned curves are smoothed alike.
  const smooth = (x, y, keep) => {
    if (!keep || y.length < ROUGH) return null;
    const gap = (x[x.length - 1] - x[0]) / (x.length - 1) || 1;
    let sum = 0, weight = 0;
    return y.map((value, i) => {
      if (value == null) return null;
      const kept = i ? Math.pow(keep, (x[i] - x[i - 1]) / gap) : 0;
      sum = sum * kept + value * (1 - (i ? kept : 0));
      weight = weight * kept + (1 - (i ? kept : 0));
      return sum / weight;
    });
  };

  // ---- numbers ----
  const figure = (value) => {
    if (value == null) return "";
    const size = Math.abs(value);
    if (size === 0) return "0";
    for (const [unit, letter] of [[1e12, "T"], [1e9, "G"], [1e6, "M"], [1e4, "k"]])
      if (size >= unit) return `${+(value / (unit === 1e4 ? 1e3 : unit)).toPrecision(4)}${letter}`;
    return size < 1e-3 ? value.toExponential(2).replace(/\.?0+e/, "e") : `${+value.toPrecision(5)}`;
  };
  const duration = (seconds) =>
    seconds >= 7200 ? `${+(seconds / 3600).toPrecision(3)} h` : seconds >= 120 ? `${+(seconds / 60).toPrecision(3)} min` : `${+seconds.toPrecision(3)} s`;
  const place = (value) => (value == null ? "" : state.over === "time" ? duration(value) : figure(value));

  // ---- charts ----
  const drawn = new Map();
  const dash = (index) => (index ? [[6, 3], [2, 3], [8, 3, 2, 3]][(index - 1) % 3] : undefined);
  const lines = (chart) => {
    const found = [];
    for (const run of runs) {
      chart.series.forEach((metric, index) => {
        const curve = run.told[metric];
        if (!run.shown || !curve || !curve.x.length) return;
        const own = chart.series.length > 1 ? colour(`c${index}`) : colour(`c${run.group % 10}`);
        const twin = chart.series.length > 1 ? 0 : runs.filter((r) => r.group === run.group).indexOf(run);
        found.push({ run, metric, curve, own, dash: dash(twin), name: chart.series.length > 1 ? metric : run.label });
      });
    }
    return found;
  };
  const options = (chart, width, series, note) => {
    const ink = colour("quiet"), grid = { stroke: colour("line"), width: 1 }, font = "11.5px system-ui, sans-serif";
    const axis = { stroke: ink, grid, ticks: { ...grid, size: 5 }, font };
    const all = series.flatMap((line) => line.ys);
    const log = state.logy && all.some((value) => value > 0);
    return {
      width, height: Math.round(Math.max(190, Math.min(260, width * 0.5))), series: [{}, ...series.map((l) => l.options)],
      scales: { x: { time: false, distr: state.logx ? 3 : 1 }, y: { distr: log ? 3 : 1 } },
      axes: [
        { ...axis, size: 28, space: 60, values: (_, ticks) => ticks.map(place) },
        { ...axis, space: 34, values: (_, ticks) => ticks.map(figure),
          size: (_, texts) => 16 + 6.6 * Math.max(3, ...(texts || []).map((text) => (text || "").length)) },
      ],
      legend: { show: false }, padding: [8, 10, 0, 0],
      cursor: { sync: { key: "runs" }, focus: { prox: 1e6 }, drag: { x: true, y: false }, points: { size: 6 } },
      focus: { alpha: series.length > 2 ? 0.3 : 1 },
      hooks: { setCursor: [(u) => tell(u, series, note)], setSeries: [(u, i) => { u.near = i; tell(u, series, note); }] },
    };
  };
  const tell = (u, series, note) => {
    const i = u.cursor.idx, line = series[(u.near || 1) - 1];
    if (i == null || !line) { note.textContent = ""; return; }
    const column = u.data[u.near || 1];
    let near = i;
    for (let d = 0; d < column.length && column[near] == null; d++) near = column[i - d] != null ? i - d : i + d;
    note.textContent = `${line.name ? line.name + "  " : ""}${place(u.data[0][near])}: ${figure(column[near])}`;
  };
  const draw = (chart) => {
    const box = drawn.get(chart);
    box.plot?.destroy();
    const found = lines(chart), series = [], tables = [];
    for (const { run, curve, own, dash, name } of found) {
      const x = places(run, curve.x), fits = (v, i) => (state.logx && !(x[i] > 0)) || (state.logy && !(v > 0)) ? null : v;
      const smoothed = smooth(curve.x, curve.y, state.smoothing);
      const marks = curve.x.length <= 30;
      const add = (ys, options) => { series.push({ ys, name, options }); return ys.map(fits); };
      const common = { spanGaps: true, dash };
      const table = [x];
      if (smoothed && found.length <= MANY) table.push(add(curve.y, { ...common, stroke: pale(own, 0.22), width: 1, points: { show: false } }));
      table.push(add(smoothed || curve.y, { ...common, stroke: own, width: 1.6, points: { show: marks, size: 5, fill: own } }));
      if (state.logx) table.forEach((column, c) => (table[c] = column.filter((_, i) => x[i] > 0)));
      tables.push(table);
    }
    box.note.textContent = "";
    if (!tables.length || !tables.some((t) => t[0].length)) { box.plot = null; return; }
    const width = Math.floor(box.place.clientWidth);
    box.plot = new uPlot(options(chart, width, series, box.note), uPlot.join(tables), box.place);
    box.width = width;
  };
  const redraw = () => drawn.forEach((_, chart) => draw(chart));
  const addChart = (chart) => {
    const box = document.createElement("div"), head = document.createElement("h3"), place = document.createElement("div");
    box.className = "chart";
    head.append(chart.title);
    if (chart.series.length > 1) {
      chart.series.forEach((metric, index) => {
        const key = document.createElement("small"), dot = document.createElement("i");
        dot.className = `dot c${index}`;
        key.append(dot, ` ${metric.split("/")[0]}`);
        head.append(key);
      });
    }
    const note = document.createElement("output");
    head.append(note);
    box.append(head, place);
    at("charts").append(box);
    drawn.set(chart, { place, note, plot: null, width: 0 });
  };
  const legend = () => {
    if (runs.length < 2) return;
    for (const run of runs) {
      const button = document.createElement("button"), dot = document.createElement("i");
      button.type = "button";
      dot.className = `dot c${run.group % 10}`;
      button.append(dot, ` ${run.label}`);
      button.setAttribute("aria-pressed", "true");
      button.addEventListener("click", () => {
        run.shown = !run.shown;
        button.setAttribute("aria-pressed", String(run.shown));
        redraw();
      });
      at("legend").append(button);
    }
  };

  // ---- light and dark ----
  const dark = () => getComputedStyle(root).colorScheme === "dark" ||
    (!root.dataset.theme && matchMedia("(prefers-color-scheme: dark)").matches);
  at("theme").addEventListener("click", () => {
    root.dataset.theme = dark() ? "light" : "dark";
    redraw();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
  let before;
  addEventListener("beforeprint", () => { before = root.dataset.theme; root.dataset.theme = "light"; redraw(); });
  addEventListener("afterprint", () => { if (before) root.dataset.theme = before; else delete root.dataset.theme; redraw(); });

  // ---- copying ----
  for (const button of document.querySelectorAll(".copy")) {
    button.addEventListener("click", async () => {
      const text = button.previousElementSibling;
      try {
        await navigator.clipboard.writeText(text.textContent);
        button.textContent = "copied";
      } catch {
        getSelection().selectAllChildren(text);
        button.textContent = "selected";
      }
      setTimeout(() => (button.textContent = "copy"), 1500);
    });
  }

  // ---- a run that goes on: only new points are asked for ----
  const follow = async () => {
    try {
      const from = runs.filter((run) => run.status === "running").map((run) => `${encodeURIComponent(run.name)}=${run.from || ""}`).join("&");
      const answer = await fetch(`${data.live}?${from}`, { cache: "no-store" });
      if (!answer.ok) throw new Error(answer.statusText);
      const news = await answer.json();
      let changed = false;
      for (const run of runs) {
        const own = news[run.name];
        if (!own) continue;
        if (own.status !== run.status) return location.reload();
        if (own.anew) { run.told = {}; run.over = {}; }
        run.from = own.from;
        for (const [name, { x, y }] of Object.entries(own.curves)) {
          const into = name === "time" || name === "train/tokens" ? run.over : run.told;
          const curve = (into[name] ||= { x: [], y: [] });
          curve.x.push(...x);
          curve.y.push(...y);
          changed = true;
          if (into === run.told && !data.charts.some((chart) => chart.series.includes(name))) {
            const chart = { title: name, series: [name] };
            data.charts.push(chart);
            addChart(chart);
          }
        }
      }
      if (changed) redraw();
      if (runs.some((run) => run.status === "running")) setTimeout(follow, 2000);
    } catch {
      setTimeout(follow, 10000); // the server is away; it may come back
    }
  };

  if (!at("charts")) return;
  data.charts.forEach(addChart);
  if (data.charts.length === 1) at("charts").classList.add("one");
  legend();
  at("smoothing").addEventListener("input", ({ target }) => {
    state.smoothing = +target.value;
    target.nextElementSibling.textContent = state.smoothing.toFixed(2);
    redraw();
  });
  at("over").addEventListener("change", ({ target }) => { state.over = target.value; redraw(); });
  for (const name of ["logx", "logy"])
    at(name).addEventListener("change", ({ target }) => { state[name] = target.checked; redraw(); });
  redraw(); // after all boxes are there: a box's width depends on how many there are
  new ResizeObserver(() => drawn.forEach((box, chart) => {
    if (box.plot && Math.abs(box.place.clientWidth - box.width) > 1) draw(chart);
  })).observe(at("charts"));
  if (data.live && runs.some((run) => run.status === "running")) follow();
})();
