// Sorting and filters (DataTables), pictures (ECharts), tabs, and sections that open when something links to them.
"use strict";

const dark = matchMedia("(prefers-color-scheme: dark)");
const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
const boards = [...document.querySelectorAll(".board")];

for (const board of boards) {
  const data = JSON.parse(board.querySelector("script.data").textContent);
  const filter = rowFilter(board, [...board.querySelectorAll("table.sortable")].map(sortable));
  const drawn = [];
  const draw = () => {
    if (board.hidden) return;
    drawn.splice(0).forEach((chart) => chart.dispose());
    for (const place of board.querySelectorAll(".chart")) {
      const narrow = place.clientWidth < 560;
      const options = place.classList.contains("budget")
        ? budget(data, narrow)
        : frontier(data.frontier[Number(place.dataset.panel)], narrow);
      const chart = echarts.init(place, null, { renderer: "svg" });
      chart.setOption(options);
      chart.on("click", (event) => event.data && event.data.row && filter(event.data.row, event.data.name));
      drawn.push(chart);
    }
  };
  board.draw = draw;
  dark.addEventListener("change", draw);
  addEventListener("resize", draw);
}
tabs();
addEventListener("hashchange", open);
open();
boards.forEach((board) => board.draw());

/** Make a table sortable; the ranking also gets a search box and a list of columns. */
function sortable(element) {
  const ranking = element.classList.contains("ranking");
  const table = new DataTable(element, {
    paging: false,
    info: false,
    searching: true,
    autoWidth: false,
    order: [],
    layout: { topStart: null, topEnd: null, bottomStart: null, bottomEnd: null },
  });
  if (ranking) tools(table, element);
  return table;
}

function tools(table, element) {
  const bar = make("div", { className: "tools" });
  const search = make("input", { type: "search", placeholder: "Filter rows" });
  search.setAttribute("aria-label", "Filter rows");
  search.addEventListener("input", () => table.search(search.value).draw());
  const columns = make("details", { className: "columns" });
  const list = make("fieldset");
  list.append(make("legend", { textContent: "Columns shown" }));
  [...element.tHead.rows[0].cells].forEach((cell, index) => {
    const box = make("input", { type: "checkbox", checked: true });
    box.addEventListener("change", () => table.column(index).visible(box.checked));
    const label = make("label");
    label.append(box, ` ${cell.textContent.trim()}`);
    list.append(label);
  });
  columns.append(make("summary", { textContent: "Columns" }), list);
  bar.append(search, columns);
  element.closest(".scroll").before(bar);
}

/** A function that shows one row alone, wherever a table of rows has it. */
function rowFilter(board, tables) {
  const said = board.querySelector(".filtered");
  const show = (row, name) => {
    for (const table of tables) {
      if (!table.table().node().closest("section").id.endsWith("-ranking")) continue;
      if (row === null) table.search.fixed("row", null);
      else table.search.fixed("row", (text, data, index) => table.row(index).node().dataset.row === row);
      table.draw();
      const fold = table.table().node().closest("details");
      if (fold && row !== null) fold.open = table.rows({ search: "applied" }).count() > 0;
    }
    said.hidden = row === null;
    said.querySelector("span").textContent = row === null ? "" : `Only ${name} is shown.`;
  };
  said.querySelector("button").addEventListener("click", () => show(null));
  return show;
}

function colors() {
  const style = getComputedStyle(document.documentElement);
  const of = (name) => style.getPropertyValue(`--${name}`).trim();
  // Okabe and Ito's palette, in which colour-blind readers can tell colours apart; its black and yellow are left out.
  const palette = dark.matches
    ? ["#56b4e9", "#2fc79c", "#e79cc6", "#f0b840", "#ff8a4a", "#b8c0ff", "#c9d16b"]
    : ["#0072b2", "#00795a", "#b0548c", "#b87a00", "#c04a00", "#4a55b5", "#6f7a00"];
  return { text: of("text"), soft: of("soft"), line: of("line"), page: of("page"), panel: of("panel"), excess: of("excess"), palette };
}

function base(color, narrow) {
  return {
    animation: !still,
    animationDuration: 300,
    textStyle: { color: color.text, fontFamily: "system-ui, sans-serif" },
    color: color.palette,
    grid: { left: narrow ? 44 : 60, right: narrow ? 12 : 28, top: narrow ? 96 : 64, bottom: 56 },
    tooltip: {
      trigger: "item",
      confine: true,
      backgroundColor: color.panel,
      borderColor: color.line,
      textStyle: { color: color.text },
    },
    legend: { type: "scroll", top: 8, left: 8, right: 8, textStyle: { color: color.text }, pageTextStyle: { color: color.text }, pageIconColor: color.text, pageIconInactiveColor: color.line },
  };
}

function axis(color, name, more) {
  return {
    type: "value",
    name,
    nameLocation: "middle",
    nameTextStyle: { color: color.soft },
    axisLine: { lineStyle: { color: color.soft } },
    axisLabel: { color: color.soft },
    splitLine: { lineStyle: { color: color.line, opacity: 0.6 } },
    ...more,
  };
}

function frontier(panel, narrow) {
  const color = colors();
  const marks = ["circle", "rect", "triangle", "diamond"];
  const dashes = ["solid", "dashed", "dotted", [8, 3, 2, 3]];
  const series = panel.curves.flatMap((curve, index) => {
    const own = color.palette[index % color.palette.length];
    const name = `trivial: ${curve.family}`;
    return [
      { name, type: "line", data: curve.line, symbol: "none", silent: true, color: own, lineStyle: { width: 2, type: dashes[index % 4] }, z: 2 },
      {
        name, type: "scatter", symbol: marks[index % 4], symbolSize: 7, color: own, z: 3, tooltip: { formatter: tip },
        data: curve.doses.map((one) => ({ value: one.at, name: one.label, row: one.row, words: { family: curve.family, "utility %": one.at[0].toFixed(1), suppression: one.at[1].toFixed(1) } })),
      },
    ];
  });
  const bars = [];
  for (const one of panel.points) {
    const [x, y] = one.at;
    if (one.excess !== null) bars.push(bar([x, y - one.excess], [x, y], { color: color.excess, width: 6, opacity: 0.5 }));
    if (one.kept[0] !== null) bars.push(bar([one.kept[0], y], [one.kept[1], y], { color: color.text, width: 1, opacity: 0.7 }));
    if (one.taken[0] !== null) bars.push(bar([x, one.taken[0]], [x, one.taken[1]], { color: color.text, width: 1, opacity: 0.7 }));
  }
  series.push({
    name: "defense", type: "scatter", color: color.text, symbolSize: 11, z: 5, tooltip: { formatter: tip }, cursor: "pointer",
    data: panel.points.map((one) => ({
      value: one.at, name: one.label, row: one.row, words: one.words,
      itemStyle: { color: one.control ? color.page : color.text, borderColor: color.text, borderWidth: 1.5 },
    })),
    label: { show: true, formatter: (at) => at.name, position: "right", color: color.text, fontSize: narrow ? 11 : 12, textBorderColor: color.page, textBorderWidth: 3 },
    labelLayout: { moveOverlap: "shiftY" },
    labelLine: { show: true, lineStyle: { color: color.soft } },
    markLine: { silent: true, symbol: "none", label: { show: false }, data: bars, animation: false },
  });
  series.push({
    name: "undefended", type: "scatter", color: color.text, symbol: "pin", symbolSize: 20, z: 4, tooltip: { formatter: tip },
    data: [{ value: [100, 0], name: panel.reference, row: panel.reference, words: { kind: "the undefended model" } }],
  });
  const shown = [...panel.points.map((one) => one.at), ...panel.curves.flatMap((one) => one.doses.map((dose) => dose.at)), [100, 0]];
  const xs = shown.map((at) => at[0]), ys = shown.map((at) => at[1]);
  const margin = 2 + 0.1 * (Math.max(...ys) - Math.min(...ys));
  return {
    ...base(color, narrow),
    xAxis: axis(color, "utility kept, %", { nameGap: 30, min: Math.floor((Math.min(...xs) - 4) / 5) * 5, max: Math.ceil((Math.max(...xs) + (narrow ? 12 : 8)) / 5) * 5 }),
    yAxis: axis(color, "suppression, points", { nameGap: narrow ? 28 : 40, min: Math.floor((Math.min(...ys) - margin) / 5) * 5, max: Math.ceil((Math.max(...ys) + margin) / 5) * 5 }),
    series,
  };
}

function bar(from, to, lineStyle) {
  return [{ coord: from, lineStyle: { type: "solid", ...lineStyle } }, { coord: to }];
}

function budget(data, narrow) {
  const color = colors();
  let next = 0;
  const series = data.budget.map((one) => {
    const plain = one.kind === "reference" || one.kind === "scratch";
    const own = plain ? color.text : color.palette[next++ % color.palette.length];
    return {
      name: one.label, type: "line", step: "end", showSymbol: false, symbolSize: 7, triggerLineEvent: true, color: own, tooltip: { formatter: tip },
      lineStyle: { width: one.kind === "reference" ? 3 : 2, type: one.kind === "scratch" ? "dotted" : one.kind === "trivial" ? "dashed" : "solid" },
      emphasis: { focus: "series" },
      data: one.points.map((at) => ({ value: at, name: one.label, row: plain ? null : one.row, words: { FLOPs: at[0].toExponential(1), "best so far": at[1].toFixed(1) } })),
    };
  });
  return {
    ...base(color, narrow),
    xAxis: axis(color, "FLOPs spent on one task", { type: "log", nameGap: 30, min: "dataMin", max: "dataMax", axisLabel: { color: color.soft, formatter: power, hideOverlap: true } }),
    yAxis: axis(color, narrow ? "best score so far" : "best score so far, points (validation)", { nameGap: narrow ? 28 : 40, scale: true }),
    series,
  };
}

function power(value) {
  const digits = Math.log10(value);
  return Math.abs(digits - Math.round(digits)) < 1e-9 ? `1e${Math.round(digits)}` : "";
}

/** What is said beside the pointer, as nodes: nothing in it is read as HTML. */
function tip(at) {
  const one = at.data;
  const box = make("div", { className: "tip" });
  box.append(make("strong", { textContent: one.name }));
  for (const [name, words] of Object.entries(one.words)) box.append(make("div", { textContent: `${name}: ${words}` }));
  return box;
}

function tabs() {
  const buttons = [...document.querySelectorAll("[role=tab]")];
  if (!buttons.length) return;
  const choose = (chosen, focus) => {
    for (const button of buttons) {
      const board = document.getElementById(button.getAttribute("aria-controls"));
      button.setAttribute("aria-selected", String(button === chosen));
      button.tabIndex = button === chosen ? 0 : -1;
      board.hidden = button !== chosen;
      if (button === chosen) board.draw();
    }
    if (focus) chosen.focus();
  };
  buttons.forEach((button, index) => {
    button.addEventListener("click", () => choose(button, false));
    button.addEventListener("keydown", (event) => {
      const to = { ArrowRight: index + 1, ArrowLeft: index - 1, Home: 0, End: buttons.length - 1 }[event.key];
      if (to === undefined) return;
      event.preventDefault();
      choose(buttons[(to + buttons.length) % buttons.length], true);
    });
  });
  choose(buttons[0], false);
  document.choose = (board) => choose(buttons[boards.indexOf(board)], false);
}

/** Open the tab and the section that the address names. */
function open() {
  const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (!target) return;
  const board = target.closest(".board");
  if (board && board.hidden && document.choose) document.choose(board);
  if (target.tagName === "DETAILS") target.open = true;
  target.scrollIntoView();
}

function make(name, properties) {
  return Object.assign(document.createElement(name), properties);
}
