"use strict";
(() => {
  const MOST = 300;
  const at = (id) => document.getElementById(id), root = document.documentElement;
  let runs = [], said = "";
  at("theme").addEventListener("click", () => {
    const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = dark ? "light" : "dark";
  });
  const element = (name, text, options = {}) => Object.assign(document.createElement(name), { textContent: text ?? "" }, options);
  const began = (seconds) => (seconds == null ? "" : new Date(seconds * 1000).toLocaleString([], { dateStyle: "medium", timeStyle: "short" }));
  const path = (run) => `/${run.split("/").map(encodeURIComponent).join("/")}`;
  const row = (run) => {
    const line = element("tr"), name = element("th", null, { scope: "row" });
    name.append(element("a", run.run.split("/")[1], { href: path(run.run) }));
    line.append(name);
    const cells = [
      ["status", run.status], ["steps", run.steps?.toLocaleString("en")],
      ["best", run.best == null ? "" : `${run.metric} ${run.best.toFixed(4)}`], ["began", began(run.created)],
    ];
    for (const [label, text] of cells) {
      const cell = element("td", label === "status" ? null : text);
      cell.dataset.label = label;
      if (label === "status") cell.append(element("span", text, { className: `status ${text}`, title: run.error || "" }));
      line.append(cell);
    }
    return line;
  };
  const show = () => {
    const word = at("find").value.toLowerCase(), status = at("status").value;
    const fits = runs.filter((run) => run.run.toLowerCase().includes(word) && (!status || run.status === status)).reverse();
    const groups = new Map();
    for (const run of fits.slice(0, MOST)) {
      const experiment = run.run.split("/")[0];
      groups.set(experiment, [...(groups.get(experiment) || []), run]);
    }
    at("experiments").replaceChildren(...[...groups].map(([experiment, own]) => {
      const section = element("section"), head = element("h2"), table = element("table", null, { className: "stack" });
      head.append(element("a", experiment, { href: path(experiment) }));
      const top = element("tr");
      top.append(...["run", "status", "steps", "best", "began"].map((text) => element("th", text)));
      const thead = element("thead"), body = element("tbody");
      thead.append(top);
      body.append(...own.map(row));
      table.append(thead, body);
      section.append(head, table);
      return section;
    }));
    const counts = {};
    for (const run of runs) counts[run.status] = (counts[run.status] || 0) + 1;
    at("summary").textContent = Object.entries(counts).map(([name, count]) => `${count} ${name}`).join(", ") || "no runs yet: mlplatform train";
    at("more").textContent = fits.length > MOST ? `The newest ${MOST} of ${fits.length}; find the others by name.` : "";
  };
  const refresh = async () => {
    try {
      const text = await (await fetch("/runs.json")).text(); // unchanged: the browser is told so, and gets no body
      if (text !== said) {
        said = text;
        runs = JSON.parse(text);
        show();
      }
    } catch {
      at("summary").textContent = "the server is away";
      said = "";
    }
    setTimeout(refresh, document.hidden ? 15000 : 3000);
  };
  at("find").addEventListener("input", show);
  at("status").addEventListener("change", show);
  refresh();
})();
