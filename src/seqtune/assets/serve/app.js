"use strict";
const $ = (id) => document.getElementById(id);
const HISTORY = "seqtune-history", THEME = "seqtune-theme", TOKEN = "seqtune-token", MOST_KEPT = 30, MOST_DRAWN = 64;
let runs = [], limits = {}, asking = null, job = null, wrong = [];

/* small things */
function make(tag, options = {}, ...children) {
  const element = document.createElement(tag);
  for (const [key, value] of Object.entries(options)) {
    if (key in element && key !== "list") element[key] = value; else element.setAttribute(key, value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}
const stored = (key, fallback) => { try { return JSON.parse(localStorage.getItem(key)) ?? fallback; } catch { return fallback; } };
const store = (key, value) => { try { localStorage.setItem(key, JSON.stringify(value)); } catch { /* a private window */ } };
const number = (value) => value.toLocaleString("en");
const lines = (text) => text.split(/\r?\n/).map((line) => line.trim()).filter(Boolean);
function problem(text) { $("problem").textContent = text; $("problem").hidden = !text; }

async function ask(path, options = {}) {
  const token = sessionStorage.getItem(TOKEN), headers = { ...(options.headers || {}) };
  if (token) headers.Authorization = `Bearer ${token}`;
  let reply;
  try { reply = await fetch(path, { ...options, headers }); } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The server cannot be reached. Is it still running?");
  }
  if (reply.ok) return reply;
  const body = await reply.json().catch(() => ({}));
  const error = new Error(body.error?.message || `The server answered ${reply.status}.`);
  error.status = reply.status;
  if (reply.status === 401) { $("token-form").hidden = false; $("token").focus(); }
  if (reply.status === 429) error.message += ` It says: in ${reply.headers.get("Retry-After")} s.`;
  throw error;
}
const post = (path, content, options = {}) =>
  ask(path, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(content), ...options });

/* what differs: longest common subsequence, by character */
function difference(ours, theirs) {
  const a = [...ours], b = [...theirs], marked = make("span", { className: "text" });
  if (a.length * b.length > 4e6) { marked.textContent = theirs; return marked; }
  const width = b.length + 1, table = new Uint16Array((a.length + 1) * width);
  for (let i = a.length - 1; i >= 0; i--) for (let j = b.length - 1; j >= 0; j--) {
    table[i * width + j] = a[i] === b[j] ? table[(i + 1) * width + j + 1] + 1
      : Math.max(table[(i + 1) * width + j], table[i * width + j + 1]);
  }
  const steps = [];
  const put = (kind, sign) => { const last = steps.at(-1); if (last?.kind === kind) last.text += sign; else steps.push({ kind, text: sign }); };
  let i = 0, j = 0;
  while (i < a.length || j < b.length) {
    if (i < a.length && j < b.length && a[i] === b[j]) { put("same", a[i]); i++; j++; }
    else if (i < a.length && (j === b.length || table[(i + 1) * width + j] >= table[i * width + j + 1])) put("del", a[i++]);
    else put("ins", b[j++]);
  }
  for (const step of steps) marked.append(step.kind === "same" ? step.text : make(step.kind, {}, step.text));
  return marked;
}

/* runs */
const run = () => runs.find((each) => each.name === $("run").value) || runs[0];

async function loadRuns() {
  const found = await (await ask("/v1/runs")).json();
  runs = found.runs; limits = found.limits;
  const before = $("run").value;
  $("run").replaceChildren(...runs.map((each) => make("option", { value: each.name }, each.name)));
  if (runs.some((each) => each.name === before)) $("run").value = before;
  $("run").disabled = runs.length < 2;
  showRun();
}

function showRun() {
  const one = run();
  $("inputs-label").textContent = `${one.input}, one a line`;
  $("beams").value = one.decode.num_beams; $("shown").value = Math.max(one.decode.num_return, Math.min(one.decode.num_beams, 5));
  $("verify").checked = one.decode.verify; $("abstain").checked = one.decode.abstain;
  $("verify-label").hidden = $("abstain-label").hidden = !one.can_verify;
  $("abstain").disabled = !$("verify").checked;
  $("columns").replaceChildren(...one.columns.flatMap((name) => [
    make("label", { htmlFor: `column-${name}` }, name), make("input", { type: "text", id: `column-${name}`, name }),
  ]));
  $("column").placeholder = one.input;
  showCard(one);
}

function showCard(one) {
  $("errors").hidden = !one.num_items; $("errors").open = false; wrong = [];
  if (!one.scores.length) { $("card").replaceChildren(make("p", { className: "soft" }, "This run has no scores: nothing was held out, or it is a plain model.")); return; }
  const rows = one.scores.map((score) => make("tr", {}, make("th", { scope: "row" }, score.name.replaceAll("_", " ")),
    make("td", {}, score.value.toFixed(4)), make("td", {}, `${score.low.toFixed(4)} to ${score.high.toFixed(4)}`)));
  const heads = ["metric", "value", "95% interval"].map((name) => make("th", { scope: "col" }, name));
  $("card").replaceChildren(make("p", { className: "soft" }, `On ${number(one.num_items)} rows that it was not trained on.`),
    make("div", { className: "scroll", tabIndex: 0, role: "region", ariaLabel: "Scores" },
      make("table", {}, make("thead", {}, make("tr", {}, ...heads)), make("tbody", {}, ...rows))));
}

async function loadErrors() {
  if (!$("errors").open || wrong.length) return;
  try {
    const found = await (await ask(`/v1/runs/${encodeURIComponent(run().name)}/errors`)).json();
    wrong = found.errors;
    showErrors(found);
  } catch (error) { problem(error.message); }
}

function showErrors() {
  const wanted = $("filter").value.toLowerCase();
  const shown = wrong.filter((e) => `${e.input} ${e.prediction} ${e.reference} ${e.status}`.toLowerCase().includes(wanted));
  if (!shown.length) { $("wrong").replaceChildren(make("p", { className: "soft" }, wrong.length ? "None of them contains that." : "There are none.")); return; }
  $("wrong").replaceChildren(...shown.slice(0, 100).map((e) => make("dl", { className: "wrong" },
    make("dt", {}, "input"), make("dd", { className: "text" }, e.input),
    make("dt", {}, "answered"), make("dd", { className: "text" }, e.prediction || "(nothing)"),
    make("dt", {}, "right"), make("dd", {}, difference(e.prediction, e.reference)),
    make("dt", {}, "how sure"), make("dd", {}, `${e.confidence === null ? "not asked" : `${(100 * e.confidence).toFixed(1)}%`} · ${e.status}`))));
}

/* asking */
function question() {
  const columns = [...$("columns").querySelectorAll("input")];
  const inputs = lines($("inputs").value), one = run();
  const content = {
    model: one.name, num_beams: Number($("beams").value), num_return: Math.min(Number($("shown").value), Number($("beams").value)),
    inputs: columns.length ? inputs.map((text) => ({ [one.input]: text, ...Object.fromEntries(columns.map((c) => [c.name, c.value])) })) : inputs,
  };
  if (one.can_verify) { content.verify = $("verify").checked; content.abstain = $("verify").checked && $("abstain").checked; }
  return content;
}

async function send(event) {
  event?.preventDefault();
  if (asking) return;
  problem("");
  const content = question();
  if (!content.inputs.length) { $("status").textContent = "Type at least one input."; $("inputs").focus(); return; }
  if (content.inputs.length > limits.inputs) { problem(`${number(content.inputs.length)} lines are more than a request may bring (${number(limits.inputs)}): drop them below as a file.`); return; }
  asking = new AbortController();
  $("send").disabled = true; $("stop").hidden = false; $("status").textContent = "Searching…";
  try {
    const found = await (await post("/v1/predict", content, { signal: asking.signal })).json();
    await show(found, lines($("references").value));
    $("status").textContent = `${number(found.predictions.length)} answered in ${found.seconds.toFixed(2)} s, ${number(found.usage.completion_tokens)} tokens.`;
    remember(content, found.predictions);
  } catch (error) {
    $("status").textContent = error.name === "AbortError" ? "Cancelled." : "";
    if (error.name !== "AbortError") problem(error.message);
  } finally { asking = null; $("send").disabled = false; $("stop").hidden = true; }
}

const GOOD = ["verified", "ok"], FAIR = ["skeleton_only", "unverified", "unfinished", "mixture", "not_checked"];
function badge(status) {
  const kind = GOOD.includes(status) ? "good" : FAIR.includes(status) ? "fair" : "bad";
  return make("span", { className: `badge ${kind}` }, status.replaceAll("_", " "));
}

function candidate(hypothesis, rank, prediction, reference) {
  const sure = Math.exp(Math.min(0, hypothesis.score)), percent = `${(100 * sure).toFixed(1)}%`;
  const copy = make("button", { type: "button", className: "quiet small", ariaLabel: `Copy candidate ${rank + 1}` }, "copy");
  copy.addEventListener("click", () => navigator.clipboard?.writeText(hypothesis.text).then(() => { copy.textContent = "copied"; }));
  const facts = [make("meter", { min: 0, max: 1, value: sure, ariaLabel: `Confidence of candidate ${rank + 1}`, title: percent }), percent];
  if (hypothesis.verdict) facts.push(badge(hypothesis.verdict));
  if (!hypothesis.finished) facts.push(badge("unfinished"));
  if (String(rank + 1) === prediction.details?.rank && rank) facts.push("chosen by verification");
  if (reference === hypothesis.text) facts.push(make("span", { className: "badge good" }, "as the reference"));
  const text = reference !== undefined && hypothesis.text !== reference ? difference(hypothesis.text, reference) : make("span", { className: "text" }, hypothesis.text);
  return make("li", {}, text, copy, make("div", { className: "facts" }, ...facts));
}

function figure(svg, caption) {
  if (!svg) return null;
  // as an image: nothing in a drawing can run or load anything
  return make("figure", {}, make("img", { src: `data:image/svg+xml,${encodeURIComponent(svg)}`, alt: `Structure: ${caption.name}`, width: 180, height: 126 }),
    make("figcaption", {}, caption.label));
}

async function show(found, references) {
  const answers = found.predictions.map((prediction, index) => {
    const list = make("ol", { className: "candidates" }, ...prediction.hypotheses.map((h, rank) => candidate(h, rank, prediction, references[index])));
    const nothing = prediction.hypotheses.length ? null : make("p", { className: "soft" }, "The model was not asked.");
    const status = prediction.status === "ok" ? null : badge(prediction.status);
    return make("article", { className: "answer", ariaLabel: `Answer ${index + 1}` },
      make("div", {}, make("h3", {}, prediction.input), status && make("p", { className: "facts" }, status), nothing, list),
      make("div", { className: "pictures" }));
  });
  $("answers").replaceChildren(...answers);
  if (run().can_draw) await draw(found, answers).catch(() => {});
}

async function draw(found, answers) {
  const wanted = [];
  found.predictions.forEach((prediction, index) => {
    const best = prediction.details?.read_back || prediction.prediction;
    wanted.push({ index, text: prediction.input, label: "input" });
    if (best) wanted.push({ index, text: best, label: "answer" });
  });
  const some = wanted.slice(0, MOST_DRAWN).filter((each) => each.text.length <= 2000);
  const { pictures } = await (await post("/v1/pictures", { model: found.model, texts: some.map((each) => each.text) })).json();
  some.forEach((each, place) => {
    const drawn = figure(pictures[place], { name: each.text, label: each.label });
    if (drawn) answers[each.index].querySelector(".pictures").append(drawn);
  });
}

/* a whole file */
const kindOf = (name) => (name.toLowerCase().match(/\.(csv|tsv|jsonl|parquet)$/) || [])[1];

async function sendFile(file) {
  problem("");
  const kind = kindOf(file.name);
  if (!kind) { problem(`${file.name}: the name must end in .csv, .tsv, .jsonl or .parquet.`); return; }
  if (file.size > limits.file) { problem(`${file.name} has ${number(file.size)} bytes; a file may have ${number(limits.file)}.`); return; }
  if (job) { problem("One file is being answered; wait for it, or cancel it."); return; }
  const one = run(), beams = Number($("beams").value);
  const settings = new URLSearchParams({ kind, model: one.name, num_beams: beams, num_return: Math.min(Number($("shown").value), beams) });
  if (one.can_verify) settings.set("verify", $("verify").checked);
  if ($("column").value.trim()) settings.set("column", $("column").value.trim());
  showJob({ state: "waiting", num_done: 0, num_rows: 0 });
  try {
    job = await (await ask(`/v1/jobs?${settings}`, { method: "POST", headers: { "Content-Type": "application/octet-stream" }, body: file })).json();
    while (job && ["waiting", "answering"].includes(job.state)) {
      showJob(job);
      await new Promise((resume) => setTimeout(resume, 400));
      if (job) job = await (await ask(`/v1/jobs/${job.id}`)).json();
    }
    if (job) showJob(job);
    if (job?.state === "failed") { problem(job.error); $("job").hidden = true; job = null; }
  } catch (error) { $("job").hidden = true; job = null; problem(error.message); }
  $("file").value = "";
}

function showJob(now) {
  $("job").hidden = false;
  const bar = $("progress");
  if (now.num_rows) { bar.max = now.num_rows; bar.value = now.num_done; } else bar.removeAttribute("value");
  const skipped = now.num_skipped ? `, ${number(now.num_skipped)} cannot be used` : "";
  const words = { waiting: "The file is read…", answering: `${number(now.num_done)} of ${number(now.num_rows)} rows${skipped}`, done: `All ${number(now.num_rows)} rows are answered${skipped}.` };
  if ($("job-status").textContent !== words[now.state]) $("job-status").textContent = words[now.state] || now.state;
  const done = now.state === "done";
  $("job-csv").hidden = $("job-jsonl").hidden = !done;
  $("job-stop").textContent = done ? "Forget them" : "Cancel";
}

async function stopJob() {
  const ending = job;
  job = null; $("job").hidden = true;
  if (ending) await ask(`/v1/jobs/${ending.id}`, { method: "DELETE" }).catch((error) => problem(error.message));
}

async function download(kind) {
  try {
    const content = await (await ask(`/v1/jobs/${job.id}/answers?kind=${kind}`)).blob();
    const link = make("a", { href: URL.createObjectURL(content), download: `answers.${kind}` });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  } catch (error) { problem(error.message); }
}

/* history, colours, token */
function remember(content, predictions) {
  const texts = content.inputs.map((each) => typeof each === "string" ? each : each[run().input]);
  const entry = { run: content.model, inputs: texts.slice(0, 20), first: predictions[0].prediction };
  const kept = stored(HISTORY, []).filter((old) => JSON.stringify(old.inputs) !== JSON.stringify(entry.inputs) || old.run !== entry.run);
  store(HISTORY, [entry, ...kept].slice(0, MOST_KEPT));
  showHistory();
}

function showHistory() {
  const kept = stored(HISTORY, []);
  $("forget").hidden = !kept.length;
  const items = kept.map((entry) => {
    const more = entry.inputs.length > 1 ? ` and ${entry.inputs.length - 1} more` : "";
    const again = make("button", { type: "button" }, `${entry.inputs[0].slice(0, 80)}${more} → ${entry.first.slice(0, 80) || "(nothing)"}`);
    again.addEventListener("click", () => {
      if (runs.some((each) => each.name === entry.run) && $("run").value !== entry.run) { $("run").value = entry.run; showRun(); }
      $("inputs").value = entry.inputs.join("\n"); $("inputs").focus();
    });
    return make("li", {}, again);
  });
  $("history").replaceChildren(...(items.length ? items : [make("li", { className: "soft" }, "What you ask is kept here, in this browser only.")]));
}

function useTheme(theme) {
  $("theme").value = theme;
  if (theme === "auto") delete document.documentElement.dataset.theme; else document.documentElement.dataset.theme = theme;
}

const start = () => loadRuns().catch((error) => { if (error.status !== 401) problem(error.message); });
useTheme(stored(THEME, "auto"));
showHistory();
$("theme").addEventListener("change", () => { store(THEME, $("theme").value); useTheme($("theme").value); });
$("run").addEventListener("change", showRun);
$("verify").addEventListener("change", () => { $("abstain").disabled = !$("verify").checked; });
$("ask").addEventListener("submit", send);
$("inputs").addEventListener("keydown", (event) => { if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) send(event); });
$("stop").addEventListener("click", () => asking?.abort());
$("errors").addEventListener("toggle", loadErrors);
$("filter").addEventListener("input", showErrors);
$("forget").addEventListener("click", () => { store(HISTORY, []); showHistory(); });
$("file").addEventListener("change", () => { if ($("file").files[0]) sendFile($("file").files[0]); });
for (const kind of ["dragover", "dragleave", "drop"]) $("drop").addEventListener(kind, (event) => {
  event.preventDefault();
  $("drop").classList.toggle("over", kind === "dragover");
  if (kind === "drop" && event.dataTransfer.files[0]) sendFile(event.dataTransfer.files[0]);
});
$("job-stop").addEventListener("click", stopJob);
$("job-csv").addEventListener("click", () => download("csv"));
$("job-jsonl").addEventListener("click", () => download("jsonl"));
$("token-form").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem(TOKEN, $("token").value.trim());
  $("token-form").hidden = true; $("token").value = "";
  problem(""); start();
});
start();
