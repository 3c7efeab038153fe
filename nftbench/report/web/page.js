// Sorting and filters (DataTables), pictures (ECharts), tabs, and sections that open when something links to them.
"use strict";

const STAR = "M10 0L13 7L20 7.6L14.6 12.2L16.2 19L10 15.3L3.8 19L5.4 12.2L0 7.6L7 7Z";
const SVG = "http://www.w3.org/2000/svg";
// The page's own colours, which follow when it turns dark or is printed.
const color = Object.fromEntries(["text", "soft", "line", "page", "panel", "shade"].map((name) => [name, `var(--${name})`]));
const boards = [...document.querySelectorAll(".board")];

for (const board of boards) {
  const data = JSON.parse(board.querySelector("script.data").textContent);
  const filter = rowFilter(board, [...board.querySelectorAll("table.sortable")].map(sortable));
  const pictures = [...board.querySelectorAll(".chart")].map((place) =>
    place.classList.contains("budget") ? budgetPicture(place, data.budget, filter) : frontierPicture(place, data.frontier[Number(place.dataset.panel)], filter));
  board.draw = () => {
    if (!board.hidden) pictures.forEach((draw) => draw());
  };
}
let width = innerWidth;
addEventListener("resize", () => {
  if (width === innerWidth || matchMedia("print").matches) return; // a phone's address bar comes and goes
  width = innerWidth;
  boards.forEach((board) => board.draw());
});
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

function base(narrow) {
  return {
    animation: false, // a picture is whole at once, also when it is printed
    textStyle: { color: color.text, fontFamily: "system-ui, sans-serif" },
    grid: { left: narrow ? 44 : 60, right: narrow ? 12 : 28, top: 20, bottom: 56 },
    tooltip: {
      trigger: "item",
      confine: true,
      backgroundColor: color.panel,
      borderColor: color.line,
      textStyle: { color: color.text },
    },
  };
}

function axis(name, more) {
  return {
    type: "value",
    name,
    nameLocation: "middle",
    nameTextStyle: { color: color.soft },
    axisLine: { onZero: false, lineStyle: { color: color.soft } },
    axisLabel: { color: color.soft, hideOverlap: true },
    splitLine: { lineStyle: { color: color.line, opacity: 0.6 } },
    ...more,
  };
}

/** A function that draws the frontier into its place; above it stand a choice of utility metrics and a legend. */
function frontierPicture(place, panel, filter) {
  let view = panel.views[0];
  const hidden = new Set();
  const draw = canvas(place, (chart, narrow) => {
    chart.setOption(frontier(view, panel.reference, hidden, narrow));
    chart.on("click", (event) => event.data.row && filter(event.data.row, event.data.name));
    chart.setOption({ graphic: { elements: names(chart, view, hidden, narrow, filter) } });
  });
  if (panel.views.length > 1) place.before(metricChoice(panel.views, (chosen) => {
    view = chosen;
    draw();
  }));
  const line = (look) => ({ ...look, color: null, soft: true });
  place.before(legend(hidden, draw, [
    ...panel.views[0].curves.map((one) => ({ name: familyName(one), line: true, look: line(one.look) })),
    ...(panel.views[0].curves.length ? [{ words: "what trivial defenses reach", shade: true }, { words: "excess: from the line to the row", bar: true }] : []),
    ...panel.views[0].points.map((one) => ({ name: one.label, look: one.look, hollow: one.control })),
    { words: "95 % interval", line: true, width: 1.5, look: { color: null, dash: "solid" } },
    { words: `undefended (${panel.reference})`, look: { color: null, mark: STAR }, star: true },
  ]));
  return draw;
}

function familyName(curve) {
  return `trivial: ${curve.family}`;
}

/** A list of utility metrics; the first is the mean over all. */
function metricChoice(views, choose) {
  const list = make("select");
  views.forEach((view, index) => {
    const count = view.points.filter((one) => one.counts).length;
    list.append(make("option", { value: index, textContent: `${view.metric} (excess of ${count} row${count === 1 ? "" : "s"})` }));
  });
  list.addEventListener("change", () => choose(views[Number(list.value)]));
  const label = make("label", { className: "metric" });
  label.append("Utility: ", list);
  return label;
}

function frontier(view, reference, hidden, narrow) {
  const points = view.points.filter((one) => !hidden.has(one.label));
  const curves = view.curves.filter((one) => !hidden.has(familyName(one)));
  const series = curves.flatMap((curve) => {
    const name = familyName(curve), look = curve.look;
    return [
      { name, type: "line", data: curve.line, symbol: "none", silent: true, lineStyle: { width: 0 }, areaStyle: { color: color.shade, opacity: 1, origin: "start" }, z: -1 },
      { name, type: "line", data: curve.line, symbol: "none", silent: true, color: color.soft, lineStyle: { width: 2, type: look.dash }, z: 2 },
      {
        name, type: "scatter", symbol: `path://${look.mark}`, symbolSize: 8, color: color.soft, itemStyle: { opacity: 1 }, z: 3, tooltip: { formatter: tip },
        data: curve.doses.map((one) => ({ value: one.at, name: one.label, row: one.row, words: { "trivial defense": curve.family, "utility %": one.at[0].toFixed(1), suppression: one.at[1].toFixed(1) } })),
      },
    ];
  });
  const shown = [...points.map((one) => one.at), [100, 0]];
  const [left, right] = range(shown.map((at) => at[0]));
  const doses = curves.flatMap((one) => one.doses.map((dose) => dose.at)).filter((at) => at[0] >= left && at[0] <= right);
  const feet = points.filter((one) => one.foot !== null).map((one) => one.foot);
  const [low, high] = range([...shown, ...doses].map((at) => at[1]).concat(feet));
  for (const one of points) {
    const own = one.look.color || color.text, bars = [];
    for (const [from, to] of intervals(one, left, right)) bars.push(bar(from, to, { color: own, width: 1.5 }));
    if (one.foot !== null) bars.push(bar([one.at[0], one.foot], one.at, one.counts ? { color: own, width: 7, opacity: 0.55 } : { color: own, width: 1.5, type: [3, 3] }));
    const dot = { name: one.label, row: one.row, words: one.words };
    series.push({
      name: one.label, type: "scatter", z: 5, tooltip: { formatter: tip }, cursor: "pointer",
      data: [
        { ...dot, value: one.at, symbol: `path://${one.look.mark}`, symbolSize: 12, itemStyle: { opacity: 1, color: one.control ? color.page : own, borderColor: own, borderWidth: 1.5 } },
        ...(one.foot !== null && one.counts ? [{ ...dot, value: [one.at[0], one.foot], symbol: "rect", symbolSize: [15, 3], itemStyle: { opacity: 1, color: own } }] : []),
      ],
      markLine: { silent: true, symbol: "none", label: { show: false }, animation: false, z: 4, data: bars },
    });
  }
  series.push({
    name: "undefended", type: "scatter", color: color.page, symbol: `path://${STAR}`, symbolSize: 18, z: 4, itemStyle: { opacity: 1, borderColor: color.text, borderWidth: 1.5 }, tooltip: { formatter: tip },
    data: [{ value: [100, 0], name: reference, row: reference, words: { kind: "the undefended model" } }],
  });
    return {
    ...base(narrow),
    xAxis: axis(narrow ? "utility kept, %" : `utility kept, %: ${view.metric}`, { nameGap: 30, min: left, max: right }),
    yAxis: axis("suppression, points", { nameGap: narrow ? 28 : 40, min: low, max: high }),
    series,
  };
}

/** Round ends of an axis, with room for names beside all values. */
function range(values) {
  const least = Math.min(...values), most = Math.max(...values);
  const margin = 1 + 0.08 * (most - least), step = most - least > 30 ? 10 : 5;
  return [Math.floor((least - margin) / step) * step, Math.ceil((most + margin) / step) * step];
}

/** The ends of a point's intervals, within the picture; an interval without ends is left out. */
function intervals(point, left, right) {
  const [x, y] = point.at, found = [];
  if (point.kept[0] !== null) found.push([[Math.max(point.kept[0], left), y], [Math.min(point.kept[1], right), y]]);
  if (point.taken[0] !== null) found.push([[x, point.taken[0]], [x, point.taken[1]]]);
  return found;
}

/**
 * The names of the points as shapes. Each stands at the free place nearest to its point, over no line, mark or other
 * name, and has a line to the point where that is not beside it. Its excess is left out where both do not fit, then the
 * name. The first rows choose first.
 */
function names(chart, view, hidden, narrow, filter) {
  const size = narrow ? 11 : 12, high = size * 1.3, pen = make("canvas").getContext("2d");
  const pixel = (at) => chart.convertToPixel({ xAxisIndex: 0, yAxisIndex: 0 }, at);
  const points = view.points.filter((one) => !hidden.has(one.label));
  const curves = view.curves.filter((one) => !hidden.has(familyName(one)));
  const around = ([x, y]) => [x - 8, y - 8, x + 8, y + 8];
  const taken = [...points.map((one) => one.at), ...curves.flatMap((one) => one.doses.map((dose) => dose.at)), [100, 0]].map((at) => around(pixel(at)));
  const lines = [
    ...curves.flatMap((one) => one.line.slice(1).map((at, index) => [one.line[index], at])),
    ...points.flatMap((one) => [...intervals(one, -Infinity, Infinity), ...(one.foot === null ? [] : [[[one.at[0], one.foot], one.at]])]),
  ].map((ends) => ends.map(pixel));
  const frame = [narrow ? 46 : 62, 4, chart.getWidth() - 4, chart.getHeight() - 58];
  const free = (box) => box[0] > frame[0] && box[1] > frame[1] && box[2] < frame[2] && box[3] < frame[3]
    && taken.every((one) => box[0] > one[2] || box[2] < one[0] || box[1] > one[3] || box[3] < one[1])
    && !lines.some(([from, to]) => crosses(from, to, box));
  const elements = [], inWay = points.map((one) => around(pixel(one.at)));
  points.forEach((one) => {
    const [x, y] = pixel(one.at);
    const clear = (end) => inWay.every((box) => inside([x, y], box) || !crosses([x, y], end, box));
    for (const words of one.excess === null || narrow ? [one.label] : [`${one.label}\nexcess ${one.excess}${one.counts ? "" : ` on ${one.metric}`}`, one.label]) {
      pen.font = `600 ${size}px system-ui, sans-serif`;
      const parts = words.split("\n"), half = Math.max(...parts.map((part) => pen.measureText(part).width)) / 2 + 3, up = (parts.length * high) / 2;
      const found = places().map(([far, angle]) => {
        const middle = [x + Math.cos(angle) * (half + far), y + Math.sin(angle) * (up + far)];
        const box = [middle[0] - half, middle[1] - up, middle[0] + half, middle[1] + up];
        return { middle, box, end: [Math.min(Math.max(x, box[0]), box[2]), Math.min(Math.max(y, box[1]), box[3])] };
      }).find(({ box, end }) => free(box) && clear(end));
      if (!found) continue;
      taken.push(found.box);
      inWay.push(found.box);
      if (Math.hypot(found.end[0] - x, found.end[1] - y) > 14) {
        lines.push([[x, y], found.end]);
        elements.push({ type: "line", silent: true, z: 4, shape: { x1: x, y1: y, x2: found.end[0], y2: found.end[1] }, style: { stroke: color.soft, lineWidth: 1 } });
      }
      elements.push({
        type: "text", z: 6, cursor: "pointer", onclick: () => filter(one.row, one.label), x: found.middle[0], y: found.middle[1],
        style: { text: words, fill: color.text, font: pen.font, lineHeight: high, textAlign: "center", textVerticalAlign: "middle" },
      });
      break;
    }
  });
  return elements;
}

/** Steps from a point to places around it, the nearest first: how far in pixels, and the angle. */
function places() {
  const steps = [8, 12, 18, 26, 36, 48, 62, 78, 96, 116, 138, 162];
  return steps.flatMap((far) => [0, 12, 4, 8, 1, 15, 7, 9, 2, 14, 6, 10, 3, 13, 5, 11].map((turn) => [far, (turn * Math.PI) / 8]));
}

function inside([x, y], [left, top, right, bottom]) {
  return left <= x && x <= right && top <= y && y <= bottom;
}

/** Whether the line between two places goes through a box (Liang and Barsky 1984). */
function crosses([x1, y1], [x2, y2], [left, top, right, bottom]) {
  let first = 0, last = 1;
  for (const [step, room] of [[x1 - x2, x1 - left], [x2 - x1, right - x1], [y1 - y2, y1 - top], [y2 - y1, bottom - y1]]) {
    if (step === 0 && room < 0) return false;
    if (step < 0) first = Math.max(first, room / step);
    if (step > 0) last = Math.min(last, room / step);
  }
  return first <= last;
}

function bar(from, to, lineStyle) {
  return [{ coord: from, lineStyle: { type: "solid", ...lineStyle } }, { coord: to }];
}

/** A function that draws the budget curves into their place; above them stands a legend. */
function budgetPicture(place, rows, filter) {
  const hidden = new Set();
  const draw = canvas(place, (chart, narrow) => {
    const shown = rows.filter((one) => !hidden.has(one.label));
    chart.setOption(budget(shown, narrow));
    chart.on("click", ({ seriesIndex }) => shown[seriesIndex].kind !== "scratch" && filter(shown[seriesIndex].row, shown[seriesIndex].label));
  });
  place.before(legend(hidden, draw, rows.map((one) => ({ name: one.label, line: true, width: one.kind === "reference" ? 3 : 2, look: { ...one.look, mark: marked(one) ? one.look.mark : null } }))));
  return draw;
}

function marked(one) {
  return one.kind !== "reference" && one.kind !== "scratch";
}

function budget(rows, narrow) {
  const series = rows.map((one) => {
    const every = Math.max(1, Math.floor(one.points.length / 6)), own = one.look.color || color.text;
    return {
      name: one.label, type: "line", step: "end", showSymbol: true, showAllSymbol: true, symbolSize: 8, triggerLineEvent: true, color: own,
      lineStyle: { width: one.kind === "reference" ? 3 : 2, type: one.look.dash },
      z: one.kind === "reference" ? 1 : 2,
      emphasis: { focus: "series" },
      data: one.points.map((value, index) => ({ value, symbol: marked(one) && index % every === 0 ? `path://${one.look.mark}` : "none" })),
    };
  });
  const shared = base(narrow);
  return {
    ...shared,
    tooltip: { ...shared.tooltip, trigger: "axis", formatter: spent },
    xAxis: axis("FLOPs spent on one task", { type: "log", nameGap: 30, min: "dataMin", max: "dataMax", axisLabel: { color: color.soft, formatter: power, hideOverlap: true } }),
    yAxis: axis(narrow ? "best score so far" : "best score so far, points (validation)", { nameGap: narrow ? 28 : 40, scale: true }),
    series,
  };
}

/** A function that draws a picture anew, as `fill` does, at the width that its place has then. */
function canvas(place, fill) {
  return () => {
    const before = echarts.getInstanceByDom(place);
    if (before) before.dispose();
    fill(echarts.init(place, null, { renderer: "svg" }), place.clientWidth < 560);
    place.querySelector("svg").setAttribute("viewBox", `0 0 ${place.clientWidth} ${place.clientHeight}`); // on paper it is narrower
  };
}

/** What is drawn, as it is drawn. What has a name is a button that hides it. */
function legend(hidden, draw, items) {
  const list = make("ul", { className: "legend" });
  for (const one of items) {
    const item = make("li"), words = make(one.name ? "button" : "span", { className: "key" });
    words.append(sample(one), one.name || one.words);
    if (one.name) {
      words.type = "button";
      words.setAttribute("aria-pressed", "true");
      words.addEventListener("click", () => {
        if (!hidden.delete(one.name)) hidden.add(one.name);
        words.setAttribute("aria-pressed", String(!hidden.has(one.name)));
        draw();
      });
    }
    item.append(words);
    list.append(item);
  }
  return list;
}

/** A small picture of a line, a mark, a bar or an area. */
function sample({ look, line, width = 2, hollow, star, shade, bar: thick }) {
  const picture = shape("svg", { viewBox: "0 0 32 14", width: 32, height: 14, "aria-hidden": "true" });
  const ink = look && look.color ? look.color : look && look.soft ? "var(--soft)" : "var(--text)";
  if (shade) picture.append(shape("rect", { width: 32, height: 14, fill: "var(--shade)", stroke: "var(--line)" }));
  if (thick) picture.append(shape("path", { d: "M4 7H26", stroke: "var(--soft)", "stroke-width": 7, opacity: 0.55 }), shape("path", { d: "M4 0V14", stroke: "var(--soft)", "stroke-width": 3 }), shape("circle", { cx: 26, cy: 7, r: 5, fill: "var(--soft)" }));
  if (line) picture.append(shape("path", { d: "M0 7H32", stroke: ink, "stroke-width": width, "stroke-dasharray": look.dash === "solid" ? "none" : look.dash.join(" ") }));
  if (look && look.mark) picture.append(shape("path", { d: look.mark, transform: star ? "translate(8 0) scale(.75)" : "translate(11 2)", fill: hollow || star ? "var(--page)" : ink, stroke: ink, "stroke-width": 1.5 }));
  return picture;
}

function shape(name, attributes) {
  const found = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) found.setAttribute(key, value);
  return found;
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
