"use strict";
// Shows what tango/site/pages.py wrote. All texts are put in as text, never as HTML. A page that was opened from disk may
// not fetch files, so data are scripts, loaded when they are first needed.
const data = window.tangoData, index = data.index, runs = index.runs;
const SHOWN = 20;  // samples on a screen
const [KEPT, SALIENT] = ["1", "2"];  // roles of kept tokens, see tango/pruners/trace.py

const byId = id => document.getElementById(id);
function make(name, properties = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(properties)) {
    if (key in element) element[key] = value;
    else element.setAttribute(key, value);
  }
  element.append(...children.filter(child => child !== null && child !== undefined));
  return element;
}

const loading = {};
function load(file) {
  return loading[file] ??= new Promise((done, failed) => {
    const script = make("script", {src: file, onload: done, onerror: () => failed(new Error(`${file} cannot be read`))});
    document.head.append(script);
  });
}
async function get(name) {
  if (!(name in data)) await load(`data/${name}.js`);
  return data[name];
}

// The address after "#": a route and what is chosen there, as run/3/0?show=lost&page=2.
function address() {
  const [route, query] = location.hash.slice(1).split("?");
  return [route.split("/").filter(part => part), new URLSearchParams(query)];
}
const route = (parts, chosen) => `#${parts.join("/")}${[...chosen].length ? `?${chosen}` : ""}`;
function choose(changes) {
  const [parts, chosen] = address();
  for (const [name, value] of Object.entries(changes)) {
    if (value === null || value === "") chosen.delete(name);
    else chosen.set(name, value);
  }
  history.replaceState(null, "", route(parts, chosen) || "#");
  return show();
}

// Ties go to the even digit, as in the tables: toFixed() makes 91.3 of 91.25.
function number(value, digits = 1) {
  if (value === null || value === undefined) return "-";
  if (Math.abs(value * 2 ** (digits + 1)) % 2 !== 1) return value.toFixed(digits);
  const low = Math.floor(value * 10 ** digits);
  return ((low + Math.abs(low) % 2) / 10 ** digits).toFixed(digits);
}
const signed = (value, digits = 1) => (value >= 0 ? "+" : "") + number(value, digits);
const ends = (three, say = number) => three === null || three[0] === null ? "-" : `${say(three[0])} [${say(three[1])}, ${say(three[2])}]`;
const percent = ratio => ratio === null ? "all tokens" : `${+(100 * ratio).toFixed(6)} %`;

// The table of all runs. of: the text; by: what it is sorted by.
const TTFT = "Avg_Total_TTFT";
const COLUMNS = {
  run: {title: "run", words: true, of: run => run.label, by: run => run.place_in_order},
  model: {title: "model", words: true, of: run => run.model},
  benchmark: {title: "benchmark", words: true, of: run => index.benchmarks[run.benchmark]},
  framework: {title: "framework", words: true, of: run => run.framework},
  kept: {title: "tokens kept (%)", of: run => number(run.kept), by: run => run.kept},
  accuracy: {title: "accuracy (%)", of: run => ends(run.accuracy), by: run => run.accuracy[0]},
  difference: {title: "difference (points)", of: run => ends(run.difference, signed), by: run => run.difference && run.difference[0]},
  share: {title: "share kept (%)", of: run => ends(run.share), by: run => run.share && run.share[0]},
  n: {title: "n", of: run => String(run.n), by: run => run.n},
  ttft: {title: "TTFT (ms)", of: run => number(run.times[TTFT], 2), by: run => run.times[TTFT]},
  speed: {title: "TTFT speed-up", of: run => run.speed === null ? "-" : `${run.speed.toFixed(2)}x`, by: run => run.speed},
  device: {title: "device", words: true, of: run => run.facts.device},
};
const FILTERS = {
  model: ["model", run => run.model],
  benchmark: ["benchmark", run => index.benchmarks[run.benchmark]],
  framework: ["framework", run => run.framework],
  method: ["method", run => run.method],
  ratio: ["retention ratio", run => percent(run.ratio)],
};
const AXES = {kept: "video tokens kept (%)", ttft: "time to first token (ms)"};

function compareBy(by) {
  return (one, other) => {
    const [a, b] = [by(one), by(other)];
    if (a === b) return 0;
    if (a === null || a === undefined) return 1;
    if (b === null || b === undefined) return -1;
    return typeof a === "string" ? a.localeCompare(b) : a - b;
  };
}

function choice(label, name, options, value, change) {
  const select = make("select", {name, "aria-label": label}, ...options.map(([key, text]) => make("option", {value: key, selected: key === value}, text)));
  select.onchange = () => change(select.value);
  return make("label", {}, label, select);
}

function showAll(chosen) {
  const visible = runs.filter(run => Object.entries(FILTERS).every(([name, [, of]]) => !chosen.has(name) || chosen.get(name) === of(run)));
  const focused = document.activeElement?.getAttribute("name") || document.activeElement?.dataset?.column;
  byId("filters").replaceChildren(
    ...Object.entries(FILTERS).map(([name, [label, of]]) =>
      choice(label, name, [["", "all"], ...[...new Set(runs.map(of))].map(value => [value, value])], chosen.get(name) || "", value => choose({[name]: value}))),
    choice("plot against", "against", Object.entries(AXES), chosen.get("against") || "kept", value => choose({against: value})),
    make("button", {type: "button", name: "clear", onclick: () => { location.hash = ""; }}, "show all"),
  );
  const sort = COLUMNS[chosen.get("sort")] ? chosen.get("sort") : "run", down = chosen.has("down");
  const by = compareBy(COLUMNS[sort].by || COLUMNS[sort].of);
  const empty = run => { const value = (COLUMNS[sort].by || COLUMNS[sort].of)(run); return value === null || value === undefined; };
  visible.sort((a, b) => empty(a) || empty(b) ? empty(a) - empty(b) : down ? by(b, a) : by(a, b));
  byId("runs").tHead.replaceChildren(make("tr", {}, ...Object.entries(COLUMNS).map(([name, {title, words}]) => {
    const mark = sort !== name ? "" : down ? " ▼" : " ▲";
    const button = make("button", {type: "button", "data-column": name}, title + mark);
    button.onclick = () => choose({sort: name, down: sort === name ? (down ? null : "yes") : words ? null : "yes"});
    return make("th", {scope: "col", className: words ? "words" : "", "aria-sort": sort !== name ? "none" : down ? "descending" : "ascending"}, button);
  })));
  byId("runs").tBodies[0].replaceChildren(...visible.map(run => make("tr", {}, ...Object.entries(COLUMNS).map(([name, {of, words}]) => {
    // Each number leads to what it comes from; for the keyboard one link a line is enough.
    const link = make("a", {href: `#run/${run.number}`}, of(run));
    if (name !== "run") link.tabIndex = -1;
    return make("td", {className: words ? "words" : ""}, link);
  }))));
  byId("count").textContent = `${visible.length} of ${runs.length} runs. Intervals of 95 %; differences are against the unpruned run in the same framework, by the paired bootstrap. ` +
    "Each number leads to its run's command and samples.";
  byId("all").hidden = false;
  if (focused) document.querySelector(`#all [name="${CSS.escape(focused)}"], #all [data-column="${CSS.escape(focused)}"]`)?.focus();
  return plot(visible, AXES[chosen.get("against")] ? chosen.get("against") : "kept");
}

// plotly takes texts for a kind of HTML.
const literal = text => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
const COLOURS = ["#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#e07b39", "#8c6bb1", "#1b9e77", "#999933"];
const methods = [...new Set(runs.map(run => run.method))];

async function plot(visible, axis) {
  await load("plotly.min.js");
  const style = getComputedStyle(document.documentElement), of = name => style.getPropertyValue(name).trim();
  const points = visible.filter(run => COLUMNS[axis].by(run) !== null && run.accuracy[0] !== null);
  const groups = group(points, run => `${run.method}\n${run.framework}`);
  const frameworks = [...new Set(runs.map(run => run.framework))];
  const x = run => COLUMNS[axis].by(run);
  const traces = [...groups.values()].map(members => {
    members = [...members].sort((a, b) => x(a) - x(b));
    const [{method, framework, label}] = members, second = frameworks.indexOf(framework);
    return {
      name: literal(label.replace(/ [\d.]+ %.*/, "") + (frameworks.length > 1 ? `, ${framework}` : "")), mode: "markers",
      x: members.map(x), y: members.map(run => run.accuracy[0]), customdata: members.map(run => run.number),
      error_y: {type: "data", symmetric: false, thickness: 1, width: 3, array: members.map(run => run.accuracy[2] - run.accuracy[0]),
        arrayminus: members.map(run => run.accuracy[0] - run.accuracy[1])},
      text: members.map(run => literal([run.label, run.model, `${index.benchmarks[run.benchmark]}, ${run.framework}`,
        `accuracy ${ends(run.accuracy)} %, n = ${run.n}`, `${number(run.kept)} % of the tokens, ${number(run.times[TTFT], 2)} ms to the first token`].join("\n")).replace(/\n/g, "<br>")),
      hovertemplate: "%{text}<extra></extra>",
      marker: {size: 10, color: COLOURS[methods.indexOf(method) % COLOURS.length], symbol: ["circle", "square-open", "diamond-open"][Math.min(second, 2)]},
    };
  });
  // The Pareto line of each model and benchmark: what no run betters with as few tokens, or as little time.
  for (const members of group(points, run => `${run.model}\n${run.benchmark}`).values()) {
    const front = [];
    for (const run of [...members].sort((a, b) => x(a) - x(b) || b.accuracy[0] - a.accuracy[0])) {
      if (!front.length || run.accuracy[0] > front[front.length - 1].accuracy[0]) front.push(run);
    }
    if (front.length > 1) traces.unshift({name: "Pareto line", legendgroup: "Pareto", showlegend: !traces.some(trace => trace.legendgroup), mode: "lines", hoverinfo: "skip",
      x: front.map(x), y: front.map(run => run.accuracy[0]), line: {color: of("--faint"), dash: "dot", width: 1, shape: "hv"}});
  }
  const narrow = innerWidth < 640, line = {gridcolor: of("--line"), zeroline: false, automargin: true};
  await Plotly.react("plot", traces, {
    paper_bgcolor: "transparent", plot_bgcolor: "transparent", font: {color: of("--ink"), family: "system-ui, sans-serif"}, margin: {t: 10, r: 10, b: 45, l: 50},
    xaxis: {...line, title: {text: AXES[axis]}, rangemode: "tozero"}, yaxis: {...line, title: {text: "accuracy (%)"}},
    legend: narrow ? {orientation: "h", y: -0.35, yanchor: "top", font: {size: 10}} : {}, hovermode: "closest", hoverlabel: {align: "left"},
  }, {displayModeBar: false, responsive: true});
  byId("plot").removeAllListeners?.("plotly_click");
  byId("plot").on("plotly_click", event => {
    const run = event.points[0].customdata;
    if (run !== undefined) location.hash = `run/${run}`;
  });
}
function group(items, of) {
  const groups = new Map();
  for (const item of items) groups.set(of(item), [...(groups.get(of(item)) || []), item]);
  return groups;
}

// One run: where its numbers come from, and its samples, beside those of another.
const fact = value => typeof value === "string" || typeof value === "number" ? make("span", {className: "text"}, String(value))
  : make("details", {}, make("summary", {}, "show"), make("pre", {}, JSON.stringify(value, null, 1)));
function facts(run) {
  const rows = Object.entries(run.facts).filter(([, value]) => value !== null && (typeof value !== "object" || Object.keys(value).length));
  return make("dl", {className: "facts"}, ...rows.flatMap(([name, value]) => [make("dt", {}, name), make("dd", {}, name === "made by" ? make("pre", {}, value) : fact(value))]));
}
function table(head, rows, words = 1) {
  const cells = (kind, line) => line.map((text, place) => make(kind, {className: place < words ? "words" : ""}, text));
  return make("div", {className: "wide"}, make("table", {}, make("thead", {}, make("tr", {}, ...cells("th", head))), make("tbody", {}, ...rows.map(line => make("tr", {}, ...cells("td", line))))));
}
const title = run => `${run.label} on ${index.benchmarks[run.benchmark]} in ${run.framework}`;
const called = (run, other) => run.label !== other?.label ? run.label : run.framework !== other.framework ? `${run.label}, ${run.framework}` : `${run.label}, ${run.place}`;

function numbers(run, other) {
  const both = [run, other].filter(one => one);
  const kinds = [...new Set(both.flatMap(one => one.kinds.map(([kind]) => kind)))];
  const of = (one, kind) => { const found = one.kinds.find(([name]) => name === kind); return found ? `${ends(found.slice(2))}` : "-"; };
  const asked = kind => String(both.map(one => one.kinds.find(([name]) => name === kind)?.[1]).find(n => n));
  const times = Object.entries(index.titles).map(([name, [unit, meaning]]) => [`${name} (${unit}): ${meaning}`, ...both.map(one => number(one.times[name], 2))]);
  return make("details", {}, make("summary", {}, "accuracy by kind of question, and times"),
    table(["", "n", ...both.map(one => called(one, both.find(two => two !== one)))], [
      ["all", String(run.n), ...both.map(one => ends(one.accuracy))], ["without an answer that can be read", "", ...both.map(one => String(one.unparsed))],
      ...kinds.map(kind => [kind, asked(kind), ...both.map(one => of(one, kind))])]),
    table(["", ...both.map(one => called(one, both.find(two => two !== one)))], times));
}

let turn = 0;  // what is shown last wins, whatever arrives last
async function showOne(parts, chosen) {
  const mine = ++turn, run = runs[parts[0]], one = byId("one");
  const numberOf = parts[1] === "none" ? null : parts[1] === undefined ? run.against : +parts[1];
  const other = numberOf === null || numberOf === run.number ? null : runs[numberOf];
  const [{ids, kinds, kind}, first, second] = await Promise.all([get(`b${run.benchmark}`), get(`r${run.number}`), other && get(`r${other.number}`)]);
  const right = (vector, place) => vector.scores[place] === 1;
  const SHOW = {all: ["all questions", () => true], wrong: ["wrong", place => !right(first, place)], right: ["right", place => right(first, place)]};
  if (other) Object.assign(SHOW, {
    changed: ["another answer", place => second.scores[place] !== null && first.answers[place] !== second.answers[place]],
    gained: [`right, and not in ${called(other, run)}`, place => second.scores[place] !== null && first.scores[place] > second.scores[place]],
    lost: [`wrong, and not in ${called(other, run)}`, place => second.scores[place] !== null && first.scores[place] < second.scores[place]],
    neither: ["wrong in both", place => second.scores[place] !== null && !right(first, place) && !right(second, place)],
  });
  const asked = [...ids.keys()].filter(place => first.scores[place] !== null);
  const counts = Object.fromEntries(Object.entries(SHOW).map(([name, [, test]]) => [name, asked.filter(test).length]));
  const showing = SHOW[chosen.get("show")] ? chosen.get("show") : "all", ofKind = kinds.indexOf(chosen.get("kind")), named = chosen.get("id") || "";
  const found = asked.filter(place => SHOW[showing][1](place) && (ofKind < 0 || kind[place] === ofKind) && (!named || ids[place].includes(named)));
  const last = Math.max(1, Math.ceil(found.length / SHOWN)), page = Math.min(last, Math.max(1, Math.floor(+chosen.get("page")) || 1));
  const samples = await Promise.all(found.slice((page - 1) * SHOWN, page * SHOWN).map(place => sample(run, other, place, ids[place], kinds[kind[place]], first, second)));
  if (mine !== turn) return;

  const others = runs.filter(one => one.benchmark === run.benchmark && one !== run);
  const options = [["none", "no other"], ...others.map(one => [String(one.number), `${one.label}, ${one.framework}, ${one.model}`])];
  const focused = document.activeElement?.getAttribute("name");
  const go = (label, to, able) => make("button", {type: "button", name: label, disabled: !able, onclick: () => choose({page: to})}, label);
  const pager = () => make("nav", {className: "pager", "aria-label": "Pages of samples"}, go("previous", page - 1, page > 1),
    make("label", {}, "page ", make("input", {type: "number", min: 1, max: last, value: page, name: "page", "aria-label": "page", onchange: event => choose({page: event.target.value})}), ` of ${last.toLocaleString("en")}`), go("next", page + 1, page < last));
  const heading = make("h2", {tabIndex: -1}, title(run));
  one.replaceChildren(...[
    make("p", {}, make("a", {href: "#"}, "all runs")), heading,
    make("p", {className: "number"}, `accuracy ${ends(run.accuracy)} %, n = ${run.n}; ${number(run.kept)} % of the video tokens kept`),
    facts(run),
    run.texts ? null : make("p", {className: "faint"}, "What the framework logged is not beside this run, so its questions and replies are not shown."),
    make("h3", {}, "Compared with"),
    make("div", {className: "form"}, choice("other run", "with", options, other ? String(other.number) : "none", value => {
      const kept = new URLSearchParams(chosen);
      kept.delete("page");
      if (["changed", "gained", "lost", "neither"].includes(kept.get("show")) && value === "none") kept.delete("show");
      location.hash = route(["run", parts[0], value], kept);
    })),
    other && compared(run, other, counts), numbers(run, other),
    make("h3", {}, "Samples"),
    make("div", {className: "form"},
      choice("show", "show", Object.entries(SHOW).map(([name, [text]]) => [name, `${text} (${counts[name].toLocaleString("en")})`]), showing, value => choose({show: value === "all" ? null : value, page: null})),
      choice("kind of question", "kind", [["", "all"], ...kinds.map(name => [name, name])], ofKind < 0 ? "" : kinds[ofKind], value => choose({kind: value, page: null})),
      make("label", {}, "id contains", make("input", {type: "search", name: "id", "aria-label": "id contains", value: named, onchange: event => choose({id: event.target.value, page: null})}))),
    make("p", {className: "faint", role: "status", id: "found"}, `${found.length.toLocaleString("en")} of ${asked.length.toLocaleString("en")} questions`),
    pager(), ...samples, found.length > SHOWN ? pager() : null,
  ].filter(child => child));
  one.hidden = false;
  if (focused && one.querySelector(`[name="${CSS.escape(focused)}"]`)) one.querySelector(`[name="${CSS.escape(focused)}"]`).focus();
  else if (one.dataset.run !== undefined && one.dataset.run !== parts[0]) heading.focus();
  one.dataset.run = parts[0];
}

function compared(run, other, counts) {
  const pair = index.pairs[`${run.number},${other.number}`], first = called(run, other), second = called(other, run);
  if (!pair) return make("p", {}, `${title(other)} was not asked the same questions, so there is no difference to tell.`);
  return make("div", {id: "compared"},
    make("p", {}, `Difference: ${ends(pair, signed)} points (paired bootstrap, 95 %, n = ${run.n}). ${counts.changed.toLocaleString("en")} answers are not the same: right in ${first} alone ${counts.gained.toLocaleString("en")}, ` +
      `right in ${second} alone ${counts.lost.toLocaleString("en")}, wrong in both ${counts.neither.toLocaleString("en")}.`),
    make("details", {}, make("summary", {}, `where ${second} comes from`), facts(other), make("a", {href: `#run/${other.number}`}, "its samples")));
}

async function sample(run, other, place, id, kind, first, second) {
  const at = name => get(`${name}-${Math.floor(place / index.rows)}`).then(page => page[place % index.rows]);
  const [[gold, question], ...replies] = await Promise.all([at(`q${run.benchmark}`), at(`r${run.number}`), ...(other ? [at(`r${other.number}`)] : [])]);
  const both = [[run, first], [other, second]].slice(0, replies.length).map(([one, vector], which) => [one, vector.scores[place], replies[which]]);
  const say = value => value === null || value === undefined ? "-" : typeof value === "string" ? value : JSON.stringify(value);
  const rows = both.filter(([, , reply]) => reply).map(([one, score, [choice, reply, before, after]]) => make("tr", {},
    make("th", {scope: "row"}, called(one, both.find(([two]) => two !== one)?.[0])),
    make("td", {className: score === 1 ? "good" : "bad"}, `${say(choice)} ${score === 1 ? "✓ right" : score === 0 ? "✗ wrong" : `scores ${score}`}`),
    make("td", {className: "text"}, reply === null ? "" : reply), make("td", {}, `${after} of ${before}`)));
  const videos = await Promise.all(both.filter(([, , reply]) => reply && reply[4] !== null).map(async ([one, , reply]) => figure(one, await get(`v${reply[4]}`), reply)));
  return make("article", {"data-id": id}, make("header", {}, make("strong", {}, id), make("span", {className: "faint"}, kind)),
    make("p", {className: "text question"}, question), make("p", {}, "gold: ", make("strong", {className: "gold"}, say(gold))),
    make("table", {}, make("thead", {}, make("tr", {}, ...["run", "answer", "reply", "tokens kept"].map(text => make("th", {}, text)))), make("tbody", {}, ...rows)), ...videos);
}

// A strip of frames; over it, dark, the tokens that were dropped, and the kept ones with a border.
function figure(run, strip, [, , before, after, , hash]) {
  const image = make("img", {src: strip.file, alt: `${strip.frames} frames of the video`, loading: "lazy"}), box = make("div", {}, image);
  const roles = strip.kept[hash];
  if (roles && run.method !== "vanilla") {
    const [rows, columns] = strip.grid, canvas = make("canvas", {role: "img", "aria-label": `${after} of ${before} tokens kept`});
    image.onload = () => {
      Object.assign(canvas, {width: image.naturalWidth, height: image.naturalHeight});
      const pen = canvas.getContext("2d"), wide = image.naturalWidth / strip.frames / columns, high = image.naturalHeight / rows;
      for (let token = 0; token < roles.length; token++) {
        const frame = Math.floor(token / rows / columns), within = token % (rows * columns);
        const x = (frame * columns + within % columns) * wide, y = Math.floor(within / columns) * high;
        if (roles[token] === "0") { pen.fillStyle = "rgb(10 10 14 / 72%)"; pen.fillRect(x, y, wide, high); continue; }
        pen.strokeStyle = roles[token] === SALIENT ? "#fff" : roles[token] === KEPT ? "#ffd640" : "#6fd08c";
        pen.lineWidth = 1.5;
        pen.strokeRect(x + .75, y + .75, wide - 1.5, high - 1.5);
      }
    };
    box.append(canvas);
  }
  const shown = run.method === "vanilla" ? "all tokens" : roles ? `${after} of ${before} tokens kept: salient (white), merged (green), as they are (yellow)` : "which tokens were kept is not known here";
  return make("figure", {}, box, make("figcaption", {}, `${run.label}: ${shown}`));
}

async function show() {
  delete document.body.dataset.ready;
  const shown = location.hash || "#";
  const [parts, chosen] = address(), known = parts[0] === "run" && runs[parts[1]];
  byId(known ? "all" : "one").hidden = true;
  try {
    await (known ? showOne(parts.slice(1), chosen) : (turn++, byId("one").dataset.run = "", showAll(chosen)));
  } catch (error) {
    byId("made").textContent = `Part of this page is missing: ${error.message}. Make it again with the command that it names.`;
  }
  document.body.dataset.ready = shown;  // of two at once the older one says nothing of the newer address
}

runs.forEach((run, place) => Object.assign(run, {number: place, place_in_order: place}));
byId("made").textContent = `made by: ${index.command} (tango ${index.version})`;
if (index.remarks.length) {
  byId("remarks").hidden = false;
  byId("remarks").firstElementChild.textContent = `Left out, or to be noted: ${index.remarks.length}`;
  byId("remarks").lastElementChild.append(...index.remarks.map(remark => make("li", {}, remark)));
}
if (!location.hash && index.opened.length) history.replaceState(null, "", `#run/${index.opened.join("/")}?show=changed`);
addEventListener("hashchange", show);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", show);
show();
