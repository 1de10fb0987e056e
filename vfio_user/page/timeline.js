"use strict";
// The timeline of a page: what events.js has of it, drawn at whatever detail fits.
(async () => {
  const at = id => document.getElementById(id);
  const about = JSON.parse(at("about").textContent);
  const NAMES = 240, ROW = 20, LABEL = 34, LISTED = 100, MOST_OPEN = 24, HALF = 16;
  const NOISE = about.kinds.indexOf("noise"), REFUSED = about.kinds.indexOf("refused"), WRONG = about.kinds.indexOf("wrong");
  const MEANINGS = { noise: "harmless noise", said: "what was printed", read: "read", write: "write", message: "message",
    step: "step, program", event: "event, interrupt", refused: "refused", fault: "done on purpose", wrong: "wrong" };

  const { count, when, lasted, rowOf, saidOf, kindOf, recordOf, answerOf, words, wordsAtHand, saidWith } =
    await embedded(at, about, () => draw());

  // -- rows ---------------------------------------------------------------------------------------------------------

  function members(of, number) { // for each of so many rows the events in it, in the order of time
    const sizes = new Uint32Array(number + 1);
    for (let index = 0; index < count; index++) sizes[of(index) + 1]++;
    for (let row = 0; row < number; row++) sizes[row + 1] += sizes[row];
    const order = new Uint32Array(count), next = sizes.slice();
    for (let index = 0; index < count; index++) order[next[of(index)]++] = index;
    return Array.from({ length: number }, (_, row) => order.subarray(sizes[row], sizes[row + 1]));
  }
  const groups = [...new Set(about.rows.map(row => row[0]))];
  const groupOf = Uint16Array.from(about.rows, row => groups.indexOf(row[0]));
  const ofRow = members(index => rowOf[index], about.rows.length);
  let ofGroup = null;
  const sizes = groups.map((_, group) => about.rows.filter((_, row) => groupOf[row] === group).length);
  const closed = new Set([...groups.keys()].filter(group => sizes[group] > MOST_OPEN || / CONFIG$/.test(groups[group])));
  const isNoise = ofRow.map(events => events.every(index => kindOf[index] === NOISE));
  let noiseShown = false;
  const longest = new Map();
  function longestOf(events) {
    if (!longest.has(events)) {
      let most = 0;
      for (const index of events) most = Math.max(most, lasted(index));
      longest.set(events, most);
    }
    return longest.get(events);
  }
  let shown = [];
  function layOut() {
    shown = [];
    groups.forEach((name, group) => {
      if (closed.has(group)) ofGroup ||= members(index => groupOf[rowOf[index]], groups.length);
      shown.push({ group, name, events: closed.has(group) ? ofGroup[group] : new Uint32Array(0) });
      if (!closed.has(group)) about.rows.forEach((row, number) => {
        if (groupOf[number] === group && (noiseShown || !isNoise[number])) shown.push({ row: number, name: row[1] || row[0], events: ofRow[number] });
      });
    });
    at("names").replaceChildren(...shown.map(line => {
      const element = document.createElement(line.group === undefined ? "span" : "button");
      element.textContent = (line.group === undefined ? "" : closed.has(line.group) ? "\u25b8 " : "\u25be ") + line.name;
      element.title = `${line.name}: ${(line.events.length).toLocaleString("en")}`;
      if (line.group !== undefined) {
        element.type = "button";
        element.setAttribute("aria-expanded", !closed.has(line.group));
        element.onclick = () => {
          closed.has(line.group) ? closed.delete(line.group) : closed.add(line.group);
          layOut();
          at("names").children[shown.findIndex(other => other.group === line.group)].focus();
        };
      }
      return element;
    }));
    at("rows").style.height = shown.length * ROW + "px";
    draw();
  }

  function showNoise(yes) {
    noiseShown = yes;
    at("noise").setAttribute("aria-pressed", yes);
    layOut();
  }

  // -- the window ---------------------------------------------------------------------------------------------------

  const whole = Math.max(about.seconds, 1e-6);
  let from = 0, until = whole, chosen = -1, matches = null, matching = [], width = 600;
  function look(first, last) { // show this part of the axis
    const least = 1e-8, length = Math.min(Math.max(last - first, least), whole * 1.02);
    from = Math.min(Math.max(first, -whole * 0.01), whole * 1.01 - length);
    until = from + length;
    draw();
  }
  const centre = () => chosen >= 0 && when[chosen] >= from && when[chosen] <= until ? when[chosen] : (from + until) / 2;
  const zoom = (factor, middle = centre()) => look(middle - (middle - from) * factor, middle + (until - middle) * factor);
  const move = part => look(from + (until - from) * part, until + (until - from) * part);
  const all = () => look(-whole * 0.005, whole * 1.005);
  function seconds(value, step = 0) { // with as many digits as a step of the axis deserves
    const digits = step ? Math.min(9, Math.max(0, Math.ceil(-Math.log10(step)))) : 6;
    return value.toFixed(digits) + " s";
  }
  const lower = (events, moment) => { // the first that is not before the moment
    let low = 0, high = events.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (when[events[middle]] < moment) low = middle + 1; else high = middle;
    }
    return low;
  };

  // -- drawing ------------------------------------------------------------------------------------------------------

  const canvas = at("canvas"), context = canvas.getContext("2d"), scroller = at("scroller");
  let colours = {};
  function readColours() {
    const style = getComputedStyle(document.documentElement);
    for (const name of ["text", "line", "shade", "match", "focus", "ground", ...about.kinds])
      colours[name] = style.getPropertyValue("--" + name).trim();
  }
  let asked = false;
  function draw() {
    if (asked) return;
    asked = true;
    requestAnimationFrame(() => { asked = false; drawNow(); });
  }
  function drawNow() {
    const scale = devicePixelRatio || 1, height = Math.min(scroller.clientHeight, shown.length * ROW) || ROW;
    if (canvas.width !== Math.round(width * scale) || canvas.height !== Math.round(height * scale)) {
      canvas.width = Math.round(width * scale);
      canvas.height = Math.round(height * scale);
      canvas.style.width = width + "px";
      canvas.style.height = height + "px";
    }
    context.setTransform(scale, 0, 0, scale, 0, 0);
    context.clearRect(0, 0, width, height);
    context.font = "11px ui-monospace, monospace";
    context.textBaseline = "middle";
    const first = Math.floor(scroller.scrollTop / ROW), last = Math.min(shown.length, first + Math.ceil(height / ROW) + 1);
    for (let line = first; line < last; line++) drawRow(shown[line], line * ROW - scroller.scrollTop);
    Object.assign(at("window").dataset, { from, until });
    at("window").textContent = `${seconds(Math.max(0, from))} to ${seconds(Math.min(whole, until))} of ${seconds(whole)}`;
    if (ruler) ruler.setScale("x", { min: from, max: until });
    if (overview) overview.redraw(false, false);
    list();
    performance.mark("drawn");
    document.documentElement.dataset.drawn = Number(document.documentElement.dataset.drawn || 0) + 1;
  }
  function drawRow(line, top) {
    context.fillStyle = line.group === undefined ? colours.line : colours.shade;
    context.fillRect(0, line.group === undefined ? top + ROW - 1 : top, width, line.group === undefined ? 1 : ROW);
    const events = line.events;
    const begin = lower(events, from - longestOf(events)), end = lower(events, until);
    if (end - begin > width) drawMany(events, begin, end, top); else drawEach(events, begin, end, top);
  }
  function drawMany(events, begin, end, top) { // a column of the picture has how many there are, of each kind
    const scale = width / (until - from), kinds = about.kinds.length, hits = new Uint8Array(width);
    const counts = new Uint32Array(width), of = new Uint32Array(width * kinds);
    let most = 1;
    for (let place = begin; place < end; place++) {
      const index = events[place], x = Math.max(0, Math.floor((when[index] - from) * scale));
      if (x >= width) continue;
      if (++counts[x] > most) most = counts[x];
      of[x * kinds + kindOf[index]]++;
      if (matches && matches[saidOf[index]]) hits[x] = 1;
    }
    for (let x = 0; x < width; x++) {
      if (!counts[x]) continue;
      const tall = 4 + (ROW - 7) * Math.log1p(counts[x]) / Math.log1p(most);
      if (hits[x]) { context.fillStyle = colours.match; context.fillRect(x, top, 1, ROW - 1); }
      context.globalAlpha = matches && !hits[x] ? 0.3 : 1;
      for (let kind = 0, foot = top + ROW - 2; kind < kinds; kind++) { // the worst is at the top, and never too small to see
        const number = of[x * kinds + kind];
        if (!number) continue;
        const part = Math.max(tall * number / counts[x], kind >= REFUSED ? 5 : 0);
        context.fillStyle = colours[about.kinds[kind]];
        context.fillRect(x, Math.max(top, foot - part), 1, part);
        foot -= part;
      }
      context.globalAlpha = 1;
    }
  }
  function drawEach(events, begin, end, top) {
    const scale = width / (until - from);
    for (let place = begin; place < end; place++) {
      const index = events[place], x = (when[index] - from) * scale, long = lasted(index) * scale;
      if (x + Math.max(long, 2) < 0) continue;
      const left = Math.max(x, -1), wide = Math.min(Math.max(x + long - left, 2), width + 2);
      const hit = matches && matches[saidOf[index]], kind = about.kinds[kindOf[index]];
      if (hit) { context.fillStyle = colours.match; context.fillRect(left - 2, top, Math.max(wide, 4) + 2, ROW - 1); }
      context.globalAlpha = matches && !hit ? 0.35 : 1;
      context.fillStyle = colours[kind];
      if (kindOf[index] >= REFUSED) { // a form of its own, not only a colour
        context.beginPath();
        context.moveTo(left - 4, top + 2); context.lineTo(left + 5, top + 2); context.lineTo(left + 0.5, top + 11);
        context.fill();
      }
      context.fillRect(left, top + (long > 2 ? 12 : 4), wide, long > 2 ? 5 : ROW - 7);
      const next = place + 1 < events.length ? (when[events[place + 1]] - from) * scale : width;
      if (next - left > LABEL) {
        const words = wordsAtHand(index);
        if (words) {
          context.save();
          context.beginPath(); context.rect(left, top, next - left - 3, ROW); context.clip();
          context.fillStyle = colours.text;
          context.fillText(words[1] || words[0], left + (kindOf[index] >= REFUSED ? 8 : 4), top + 7);
          context.restore();
        }
      }
      context.globalAlpha = 1;
      if (index === chosen) {
        context.strokeStyle = colours.focus; context.lineWidth = 2;
        context.strokeRect(left - 2, top + 1, Math.max(wide, 4) + 3, ROW - 3);
      }
    }
  }

  // -- the axis itself, and the whole of it above: uPlot's ----------------------------------------------------------

  let ruler = null, overview = null;
  function chosenPart(chart) { // what was dragged over is looked at
    const { left, width: wide } = chart.select;
    if (wide > 2) look(chart.posToVal(left, "x"), chart.posToVal(left + wide, "x"));
    chart.setSelect({ left: 0, top: 0, width: 0, height: 0 }, false);
  }
  const ticks = (chart, splits, axis, space, step) => splits.map(value => chart.valToPos(value, "x") < HALF ? "" : seconds(value, step));
  function chart(where, height, data, series, more) {
    where.replaceChildren();
    return new uPlot({
      width, height, padding: [0, 0, 0, 0], legend: { show: false }, series: [{}, ...series],
      scales: { x: { time: false } },
      axes: [{ values: ticks, stroke: () => colours.text, grid: { stroke: () => colours.line, width: 1 },
        ticks: { stroke: () => colours.line }, size: 30, space: 90, ...more.axis }, { show: false }],
      cursor: { y: false, drag: { x: true, y: false, setScale: false }, points: { show: false } },
      hooks: { setSelect: [chosenPart], ...more.hooks },
    }, data, where);
  }
  function charts() {
    width = Math.max(200, Math.floor(scroller.clientWidth - NAMES));
    const bins = 600, times = new Float64Array(bins), much = new Float64Array(bins), bad = new Array(bins).fill(null);
    for (let bin = 0; bin < bins; bin++) times[bin] = whole * (bin + 0.5) / bins;
    for (let index = 0; index < count; index++) {
      if (kindOf[index] === NOISE) continue;
      const bin = Math.min(bins - 1, Math.floor(when[index] / whole * bins));
      much[bin]++;
      if (kindOf[index] === WRONG) bad[bin] = 0;
    }
    const tall = much.reduce((most, value) => Math.max(most, value), 1);
    const logarithms = much.map(value => value ? Math.log1p(value) / Math.log1p(tall) : 0);
    const marks = bad.map(value => value === null ? null : 1);
    overview = chart(at("overview"), 80, [times, logarithms, marks], [
      { stroke: () => colours.read, fill: () => colours.read + "66", width: 1, points: { show: false } },
      { stroke: () => colours.wrong, fill: () => colours.wrong, width: 0, points: { show: true, size: 7, fill: () => colours.wrong } },
    ], { axis: {}, hooks: { draw: [shadeWindow] } });
    ruler = chart(at("ruler"), 30, [[from, until], [null, null]], [{}], { axis: { side: 0 }, hooks: {} });
  }
  function shadeWindow(chart) {
    const { ctx, bbox } = chart, left = chart.valToPos(Math.max(from, 0), "x", true), right = chart.valToPos(Math.min(until, whole), "x", true);
    ctx.save();
    ctx.strokeStyle = colours.focus; ctx.lineWidth = 2;
    ctx.strokeRect(left, bbox.top + 1, Math.max(2, right - left), bbox.height - 2);
    ctx.restore();
  }

  // -- one event ----------------------------------------------------------------------------------------------------

  function flat(fields, before = "") { // nested fields by their paths
    return Object.entries(fields).flatMap(([name, value]) =>
      value !== null && typeof value === "object" && !Array.isArray(value)
        ? flat(value, before + name + ".") : [[before + name, Array.isArray(value) ? JSON.stringify(value) : String(value)]]);
  }
  const neighbour = step => {
    const events = ofRow[rowOf[chosen]], place = lower(events, when[chosen]);
    let here = place;
    while (events[here] !== chosen) here++;
    return events[here + step];
  };
  async function choose(index, into = false) { // show it; with `into` also where it is on the axis
    if (index === undefined || index < 0) return;
    chosen = index;
    const { title, fields } = await words(index), [group, name] = about.rows[rowOf[index]];
    const moment = new Date((about.began + when[index]) * 1000);
    const known = [["kind", MEANINGS[about.kinds[kindOf[index]]]], ["where", [group, name].filter(Boolean).join(", ")],
      ["seconds", when[index].toFixed(9)], ["time", `${moment.toISOString().replace("T", " ").replace("Z", "")} UTC`]];
    if (lasted(index)) known.push(["took", lasted(index) < 1 ? (lasted(index) * 1e6).toFixed(1) + " us" : lasted(index).toFixed(6) + " s"]);
    if (recordOf[index]) known.push(["record", recordOf[index] + (answerOf[index] ? `, answered by record ${answerOf[index]}` : "")]);
    at("detail-title").textContent = title;
    at("fields").replaceChildren(...[...known, ...flat(fields)].flatMap(([term, value]) => {
      const dt = document.createElement("dt"), dd = document.createElement("dd");
      dt.textContent = term; dd.textContent = value;
      return [dt, dd];
    }));
    at("detail").hidden = false;
    at("before").disabled = neighbour(-1) === undefined;
    at("after").disabled = neighbour(1) === undefined;
    if (into || when[index] < from || when[index] > until) show(index);
    draw();
  }
  function show(index) { // have it in the middle, its row in sight
    const group = groupOf[rowOf[index]];
    if (isNoise[rowOf[index]] && !noiseShown) showNoise(true);
    if (closed.delete(group)) layOut();
    const length = until - from;
    if (when[index] < from + length * 0.05 || when[index] > until - length * 0.05) look(when[index] - length / 2, when[index] + length / 2);
    const line = shown.findIndex(other => other.row === rowOf[index]) * ROW;
    if (line < scroller.scrollTop || line + ROW > scroller.scrollTop + scroller.clientHeight) scroller.scrollTop = line - scroller.clientHeight / 2;
  }

  // -- search -------------------------------------------------------------------------------------------------------

  async function search() {
    const wanted = at("wanted").value.trim().toLowerCase().split(/\s+/).filter(Boolean);
    matches = null; matching = [];
    if (wanted.length) {
      at("found").textContent = "searching";
      const found = await saidWith(wanted);
      const every = [];
      for (let index = 0; index < count; index++) if (found[saidOf[index]]) every.push(index);
      matches = found; matching = every;
    }
    at("found").textContent = wanted.length ? `${matching.length.toLocaleString("en")} found` : "";
    draw();
  }
  function match(step) {
    if (!matching.length) return;
    let place = matching.findIndex(index => index >= chosen);
    if (place < 0) place = matching.length;
    if (step > 0 && matching[place] === chosen) place++;
    if (step < 0) place--;
    place = (place + matching.length) % matching.length;
    at("found").textContent = `${(place + 1).toLocaleString("en")} of ${matching.length.toLocaleString("en")}`;
    return choose(matching[place], true);
  }
  async function searchFor(text) {
    at("wanted").value = text;
    await search();
  }

  // -- the same as a table, for whoever does not see or point -------------------------------------------------------

  let page = 0, listing = 0;
  async function list() {
    if (!at("listed").open) return;
    const turn = ++listing, inView = [];
    if (matches) { for (const index of matching) if (when[index] >= from && when[index] < until) inView.push(index); }
    const every = new Uint32Array(0), first = matches ? 0 : firstAt(from), number = matches ? inView.length : firstAt(until) - first;
    page = Math.min(page, Math.max(0, Math.ceil(number / LISTED) - 1));
    const rows = [];
    for (let place = page * LISTED; place < Math.min(number, (page + 1) * LISTED); place++) {
      const index = matches ? inView[place] : first + place, { title } = await words(index);
      if (turn !== listing) return;
      const row = document.createElement("tr"), button = document.createElement("button");
      row.classList.toggle("chosen", index === chosen);
      button.type = "button"; button.textContent = title; button.onclick = () => choose(index);
      for (const text of [when[index].toFixed(6), about.rows[rowOf[index]].filter(Boolean).join(", "), MEANINGS[about.kinds[kindOf[index]]], null]) {
        const cell = document.createElement("td");
        text === null ? cell.append(button) : cell.append(text);
        row.append(cell);
      }
      rows.push(row);
    }
    at("list").replaceChildren(...rows);
    at("page").textContent = number ? `${page * LISTED + 1} to ${Math.min(number, (page + 1) * LISTED)} of ${number.toLocaleString("en")} ${matches ? "found in this part" : "in this part"}` : "nothing in this part";
    at("back").disabled = !page;
    at("forth").disabled = (page + 1) * LISTED >= number;
  }
  const firstAt = moment => { let low = 0, high = count; while (low < high) { const middle = (low + high) >> 1; if (when[middle] < moment) low = middle + 1; else high = middle; } return low; };

  // -- hands --------------------------------------------------------------------------------------------------------

  const placeOf = event => event.clientX - canvas.getBoundingClientRect().left;
  const momentOf = event => from + placeOf(event) / width * (until - from);
  function under(event) { // the event that is nearest to the pointer, in its row
    const line = shown[Math.floor((event.clientY - canvas.getBoundingClientRect().top + scroller.scrollTop) / ROW)];
    if (!line || !line.events.length) return -1;
    const moment = momentOf(event), near = 8 / width * (until - from), place = lower(line.events, moment + near);
    let best = -1, distance = Infinity, worst = -1;
    for (let back = place - 1; back >= Math.max(0, place - 20000); back--) {
      const index = line.events[back], gap = Math.max(when[index] - moment, moment - when[index] - lasted(index), 0);
      if (gap <= near && (gap < distance || (gap === distance && kindOf[index] > worst))) { best = index; distance = gap; worst = kindOf[index]; }
      if (when[index] < moment - near - longestOf(line.events)) break;
    }
    return best;
  }
  let held = null;
  canvas.onpointerdown = event => {
    held = { x: event.clientX, from, until, moved: false };
    try { canvas.setPointerCapture(event.pointerId); } catch { /* it has gone */ }
  };
  canvas.onpointermove = async event => {
    if (held) {
      const by = (event.clientX - held.x) / width * (held.until - held.from);
      held.moved ||= Math.abs(event.clientX - held.x) > 3;
      if (held.moved) look(held.from - by, held.until - by);
      return;
    }
    const index = under(event);
    at("readout").textContent = `${seconds(momentOf(event))}${index < 0 ? "" : ": " + (await words(index)).title}`;
  };
  canvas.onpointerup = event => {
    const clicked = held && !held.moved;
    held = null;
    if (clicked) { scroller.focus({ preventScroll: true }); choose(under(event)); }
  };
  canvas.onpointercancel = () => { held = null; };
  scroller.addEventListener("wheel", event => {
    if (event.ctrlKey || event.metaKey) {
      event.preventDefault();
      zoom(Math.exp(event.deltaY / 300), momentOf(event));
    } else if (event.shiftKey || Math.abs(event.deltaX) > Math.abs(event.deltaY)) {
      event.preventDefault();
      move((event.deltaX || event.deltaY) / width);
    }
  }, { passive: false });
  scroller.onscroll = draw;
  const KEYS = { ArrowLeft: () => move(-0.2), ArrowRight: () => move(0.2), "+": () => zoom(0.5), "=": () => zoom(0.5), "-": () => zoom(2),
    0: all, n: () => match(1), p: () => match(-1), "[": () => chosen >= 0 && choose(neighbour(-1), true), "]": () => chosen >= 0 && choose(neighbour(1), true),
    Escape: () => { at("detail").hidden = true; chosen = -1; draw(); } };
  scroller.onkeydown = event => {
    if (event.ctrlKey || event.metaKey || event.altKey || !KEYS[event.key]) return;
    event.preventDefault();
    KEYS[event.key]();
  };
  document.onkeydown = event => {
    if (event.key === "/" && !/INPUT|TEXTAREA/.test(event.target.tagName)) { event.preventDefault(); at("wanted").focus(); }
  };
  const press = { closer: () => zoom(0.5), farther: () => zoom(2), earlier: () => move(-0.3), later: () => move(0.3), all,
    previous: () => match(-1), next: () => match(1), before: () => choose(neighbour(-1), true), after: () => choose(neighbour(1), true),
    noise: () => showNoise(!noiseShown), alike: () => searchFor(at("detail-title").textContent), back: () => { page--; list(); }, forth: () => { page++; list(); } };
  for (const [id, act] of Object.entries(press)) at(id).onclick = act;
  for (const button of document.querySelectorAll("#odd button")) button.onclick = () => {
    const { trace, record } = button.dataset, number = Number(record);
    const here = groups.map(group => group === trace || group.startsWith(trace + " "));
    choose(recordOf.findIndex((its, index) => (its === number || answerOf[index] === number) && here[groupOf[rowOf[index]]]), true);
  };
  at("search").onsubmit = event => { event.preventDefault(); page = 0; search().then(() => match(1)); };
  at("wanted").oninput = () => { if (!at("wanted").value) search(); };
  at("listed").ontoggle = list;

  // -- the beginning ------------------------------------------------------------------------------------------------

  at("legend").replaceChildren(...about.kinds.map(kind => {
    const item = document.createElement("li"), colour = document.createElement("i");
    colour.style.background = `var(--${kind})`;
    item.append(colour, MEANINGS[kind]);
    return item;
  }));
  const silent = kindOf.reduce((number, kind) => number + (kind === NOISE), 0);
  at("noise").hidden = !silent;
  at("noise").textContent = `known harmless noise: ${silent.toLocaleString("en")}`;
  const worth = [];
  for (const [name, most] of [["wrong", 6], ["fault", 3], ["refused", 3]]) {
    const kind = about.kinds.indexOf(name);
    for (let index = 0, found = 0; index < count && found < most; index++) if (kindOf[index] === kind) { worth.push(index); found++; }
  }
  if (worth.length) {
    worth.sort((one, other) => one - other);
    const heading = document.createElement("p");
    heading.textContent = "Worth a look first:";
    at("worth").append(heading, ...await Promise.all(worth.map(async index => {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = `${when[index].toFixed(3)} s ${about.rows[rowOf[index]].filter(Boolean).join(", ")}: ${(await words(index)).title}`.slice(0, 300);
      button.onclick = () => choose(index, true);
      return button;
    })));
    at("worth").hidden = false;
  }
  function begin() {
    readColours();
    charts();
    layOut();
  }
  begin();
  all();
  addEventListener("resize", begin);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", begin);
  document.documentElement.dataset.ready = "yes";
})().catch(error => {
  const said = document.createElement("p");
  said.textContent = `The timeline cannot be shown: ${error}`;
  document.getElementById("timeline").append(said);
  throw error;
});
