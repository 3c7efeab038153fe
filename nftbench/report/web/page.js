// Sorting and filters (DataTables), pictures (ECharts), tabs, and sections that open when something links to them.
"use strict";

const dark = matchMedia("(prefers-color-scheme: dark)");
const STAR = "path://M10 0L13 7L20 7.6L14.6 12.2L16.2 19L10 15.3L3.8 19L5.4 12.2L0 7.6L7 7Z";
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
      if (place.classList.contains("frontier")) placeLabels(chart, data.frontier[Number(place.dataset.panel)], narrow);
      chart.on("click", (event) => {
        const one = options.rows ? options.rows[event.seriesIndex] : event.data;
        if (one && one.row) filter(one.row, one.name);
      });
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
  table.columns().header().toArray().forEach((cell, index) => {
    const box = make("input", { type: "checkbox", checked: cell.dataset.shown !== "false" });
    if (!box.checked) table.column(index).visible(false);
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
  return Object.fromEntries(["text", "soft", "line", "page", "panel"].map((name) => [name, style.getPropertyValue(`--${name}`).trim()]));
}

function base(color, narrow) {
  return {
    animation: false, // a picture is whole at once, also when it is printed
    textStyle: { color: color.text, fontFamily: "system-ui, sans-serif" },
    grid: { left: narrow ? 44 : 60, right: narrow ? 12 : 28, top: 52, bottom: 56 },
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
  const series = panel.curves.flatMap((curve) => {
    const name = `trivial: ${curve.family}`, look = curve.look;
    return [
      { name, type: "line", data: curve.line, symbol: "none", silent: true, color: color.soft, lineStyle: { width: 2, type: look.dash }, z: 2 },
      {
        name, type: "scatter", symbol: look.mark, symbolSize: 7, color: color.soft, z: 3, tooltip: { formatter: tip },
        data: curve.doses.map((one) => ({ value: one.at, name: one.label, row: one.row, words: { family: curve.family, "utility %": one.at[0].toFixed(1), suppression: one.at[1].toFixed(1) } })),
      },
    ];
  });
  const shown = [...panel.points.map((one) => one.at), [100, 0]];
  const left = Math.min(...shown.map((at) => at[0])) - 15;
  const right = Math.max(...shown.map((at) => at[0])) + 6;
  const doses = panel.curves.flatMap((one) => one.doses.map((dose) => dose.at)).filter((at) => at[0] >= left);
  const feet = panel.points.filter((one) => one.foot !== null).map((one) => one.foot);
  const ys = [...shown.map((at) => at[1]), ...doses.map((at) => at[1]), ...feet];
  const margin = 2 + 0.1 * (Math.max(...ys) - Math.min(...ys));
  const bars = [], excess = [];
  for (const one of panel.points) {
    const [x, y] = one.at, own = one.look.color || color.text;
    if (one.foot !== null) excess.push(bar([x, one.foot], [x, y], { color: own, width: 6, opacity: 0.4 }));
    if (one.kept[0] !== null) bars.push(bar([Math.max(one.kept[0], left), y], [Math.min(one.kept[1], right), y], { color: own, width: 1.5 }));
    if (one.taken[0] !== null) bars.push(bar([x, one.taken[0]], [x, one.taken[1]], { color: own, width: 1.5 }));
  }
  const lines = (name, data, own, icon) => ({ name, type: "line", data: [], symbol: icon, color: own, z: 1, markLine: { silent: true, symbol: "none", label: { show: false }, data, animation: false, z: 1 } });
  series.push(lines("excess", excess, color.soft, "rect"), lines("95 % interval", bars, color.text, "none"));
  const points = panel.points.map((one) => {
    const own = one.look.color || color.text;
    return { value: one.at, name: one.label, row: one.row, words: one.words, symbol: one.look.mark, itemStyle: { color: one.control ? color.page : own, borderColor: own, borderWidth: 1.5 } };
  });
  series.push({
    name: "defense", type: "scatter", color: color.text, symbolSize: 11, z: 5, tooltip: { formatter: tip }, cursor: "pointer", data: points,
    label: { show: true, formatter: (at) => at.name, color: color.text, fontSize: narrow ? 11 : 12, fontWeight: 600, textBorderColor: color.page, textBorderWidth: 3 },
  });
  series.push({
    name: "undefended", type: "scatter", color: color.text, symbol: STAR, symbolSize: 17, z: 4, tooltip: { formatter: tip },
    data: [{ value: [100, 0], name: panel.reference, row: panel.reference, words: { kind: "the undefended model" } }],
  });
  return {
    ...base(color, narrow),
    xAxis: axis(color, "utility kept, %", { nameGap: 30, min: Math.floor(left / 5) * 5, max: Math.ceil(right / 5) * 5 }),
    yAxis: axis(color, "suppression, points", { nameGap: narrow ? 28 : 40, min: Math.floor((Math.min(...ys) - margin) / 10) * 10, max: Math.ceil((Math.max(...ys) + margin) / 10) * 10 }),
    series,
  };
}

/** Move the label of each point to the free place nearest to it, with a line to the point where that is not beside it. */
function placeLabels(chart, panel, narrow) {
  const color = colors(), size = narrow ? 11 : 12, pen = make("canvas").getContext("2d");
  pen.font = `600 ${size}px system-ui, sans-serif`;
  const points = panel.points.map((one) => chart.convertToPixel({ xAxisIndex: 0, yAxisIndex: 0 }, one.at));
  const taken = [...points, chart.convertToPixel({ xAxisIndex: 0, yAxisIndex: 0 }, [100, 0])].map(([x, y]) => [x - 6, y - 6, x + 6, y + 6]);
  const offsets = [], elements = [];
  const fits = (box) => box[0] > 4 && box[1] > 44 && box[2] < chart.getWidth() - 4 && box[3] < chart.getHeight() - 30
    && taken.every((one) => box[0] > one[2] || box[2] < one[0] || box[1] > one[3] || box[3] < one[1]);
  const near = [...Array(120).keys()].flatMap((step) => [-1, 1].flatMap((side) => [1, -1].map((up) => [side, up * (12 + 2 * step)])));
  panel.points.forEach((one, index) => {
    const [x, y] = points[index], half = pen.measureText(one.label).width / 2 + 3;
    const at = ([side, down]) => [x + side * (half + 8), y - down];
    const box = ([across, down]) => [across - half, down - size * 0.7, across + half, down + size * 0.7];
    const place = at(near.find((step) => fits(box(at(step)))) || near[0]);
    taken.push(box(place));
    offsets.push([place[0] - x, place[1] - y]);
    if (Math.abs(place[1] - y) > 16)
      elements.push({ type: "line", silent: true, z: 4, shape: { x1: x, y1: y, x2: x + Math.sign(place[0] - x) * 8, y2: place[1] }, style: { stroke: color.soft, lineWidth: 1 } });
  });
  const series = chart.getOption().series;
  const defenses = series.find((one) => one.name === "defense");
  const data = defenses.data.map((one, index) => ({ ...one, label: { position: "inside", offset: offsets[index] } }));
  chart.setOption({ series: series.map((one) => (one === defenses ? { data } : {})), graphic: { elements } });
}

function bar(from, to, lineStyle) {
  return [{ coord: from, lineStyle: { type: "solid", ...lineStyle } }, { coord: to }];
}

function budget(data, narrow) {
  const color = colors();
  const series = data.budget.map((one) => ({
    name: one.label, type: "line", step: "end", showSymbol: false, symbol: one.look.mark, symbolSize: 7, triggerLineEvent: true,
    color: one.kind === "reference" ? color.text : one.look.color || color.text,
    lineStyle: { width: one.kind === "reference" ? 3 : 2, type: one.look.dash },
    z: one.kind === "reference" ? 1 : 2,
    emphasis: { focus: "series" },
    data: one.points,
  }));
  const shared = base(color, narrow);
  return {
    ...shared,
    tooltip: { ...shared.tooltip, trigger: "axis", formatter: spent },
    xAxis: axis(color, "FLOPs spent on one task", { type: "log", nameGap: 30, min: "dataMin", max: "dataMax", axisLabel: { color: color.soft, formatter: power, hideOverlap: true } }),
    yAxis: axis(color, narrow ? "best score so far" : "best score so far, points (validation)", { nameGap: narrow ? 28 : 40, scale: true }),
    series,
    rows: data.budget.map((one) => ({ row: one.kind === "scratch" ? null : one.row, name: one.label })),
  };
}

/** What every row reaches at one budget, the highest first. */
function spent(lines) {
  const box = make("div", { className: "tip" });
  box.append(make("strong", { textContent: `${lines[0].value[0].toExponential(1)} FLOPs` }));
  for (const one of [...lines].sort((a, b) => b.value[1] - a.value[1]))
    box.append(make("div", { textContent: `${one.value[1].toFixed(1)}  ${one.seriesName}` }));
  return box;
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
