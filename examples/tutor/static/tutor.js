// The page: a solution typed line by line, drafts beside it, and a teacher's corrections of both.

import { Connection, Refused, ask } from "./api.js";
import { Drafts } from "./drafts.js";
import { lineItem } from "./marked.js";
import { PROBLEMS } from "./problems.js";
import { Ended, LiveSession } from "./session.js";
import { Solution } from "./solutions.js";
import { count, looksLike, shownScore, wordsFor } from "./words.js";

const WATCH_MS = 5000;
const STORE = "line-by-line"; // of this tab alone: it ends with it
const byId = (id) => document.getElementById(id);

const connection = new Connection();
const drafts = new Drafts(connection, () => ({ info, teacher }), changed);
let info = null; // what the server says of its model
let teacher = false;
let solution = null; // what is being written
let session = null;
let pending = null; // a line that waits for its mark
let kept = []; // solutions of before that a teacher corrected

// --- the problem

function begin(problem, texts) {
  keepCorrected();
  session?.end();
  session = new LiveSession(problem, connection);
  session.addEventListener("reopened", ({ detail }) => tellReopened(detail));
  session.addEventListener("busy", ({ detail }) =>
    tell(`The server is busy; trying again in ${detail} s.`));
  solution = new Solution(problem, "Your solution");
  pending = null;
  drafts.begin(problem, texts);
  byId("problem").value = problem;
  byId("line-error").textContent = "";
  byId("next-line").value = "";
  draw();
  changed();
}

function keepCorrected() {
  const now = solution === null ? [] : [solution, ...drafts.solutions];
  kept.push(...now.filter((one) => one.overruled.length > 0));
}

function fillExamples() {
  const select = byId("example");
  select.append(new Option("a problem of your own", ""));
  PROBLEMS.forEach(({ problem }, index) => select.append(new Option(problem, index)));
  select.addEventListener("change", () => {
    if (select.value === "") {
      byId("problem").value = "";
      byId("problem").focus();
      return;
    }
    const { problem, drafts: texts } = PROBLEMS[select.value];
    begin(problem, texts);
    say("A new problem.");
  });
  byId("problem-form").addEventListener("submit", (event) => {
    event.preventDefault();
    const problem = byId("problem").value.trim();
    if (!problem) return;
    const known = PROBLEMS.findIndex((one) => one.problem === problem);
    select.value = known < 0 ? "" : known;
    begin(problem, known < 0 ? [] : PROBLEMS[known].drafts);
    byId("next-line").focus();
  });
}

// --- writing

async function check() {
  const input = byId("next-line");
  const text = input.value.trim();
  if (pending !== null || !text) return;
  const now = solution;
  byId("line-error").textContent = "";
  input.value = "";
  pending = text;
  draw();
  try {
    const state = await session.add(text);
    if (now !== solution) return;
    pending = null;
    judge(state);
    sayLine(solution.lines.length - 1);
  } catch (error) {
    if (now !== solution) return;
    pending = null;
    if (!input.value) input.value = text;
    refuse(error, "This line was not marked, and not taken");
  }
}

async function takeBack(n) {
  const now = solution;
  const texts = solution.lines.map((line) => line.text);
  if (pending !== null || n < 1 || n > texts.length) return;
  try {
    const state = await session.takeBack(n);
    if (now !== solution) return;
    judge(state);
    const input = byId("next-line");
    if (!input.value) input.value = texts[texts.length - n];
    input.focus();
    say(`${count(n, "line")} taken back.`);
  } catch (error) {
    if (now === solution) refuse(error, "Nothing was taken back");
  }
}

function judge(state) {
  solution.judge(session.lines, state);
  draw();
  changed();
}

function refuse(error, what) {
  draw();
  if (error instanceof Ended) return;
  if (!(error instanceof Refused)) throw error;
  byId("line-error").textContent = `${what}: ${error.message}`;
}

function draw() {
  byId("asked").textContent = solution.problem;
  const options = {
    info,
    teacher,
    group: "write",
    onMark: (index, good, focus) => {
      solution.setMark(index, good);
      draw();
      byId(focus)?.focus();
      changed();
    },
    onRetry: (index) => takeBack(solution.lines.length - index),
  };
  const items = solution.lines.map((_, index) => lineItem(solution, index, options));
  if (pending !== null) items.push(waitingItem());
  byId("lines").replaceChildren(...items);
  byId("take-back").disabled = solution.lines.length === 0 || pending !== null;
  byId("summary").textContent = summary();
}

function waitingItem() {
  const item = document.createElement("li");
  item.className = "line waiting";
  const text = document.createElement("span");
  text.className = "text";
  text.textContent = pending;
  const verdict = document.createElement("span");
  verdict.className = "verdict";
  verdict.textContent = connection.up ? "being marked" : "waiting for the server";
  item.append(text, verdict);
  return item;
}

function summary() {
  const words = wordsFor(info.label_meaning);
  if (solution.lines.length === 0) return "Nothing written yet.";
  if (solution.broken !== null) return words.broken(solution.broken + 1);
  return solution.sound ? words.sound : "Not judged.";
}

function sayLine(index) {
  const line = solution.lines[index];
  const words = wordsFor(info.label_meaning);
  const word = solution.modelMark(index) ? words.good : words.bad;
  const seen = looksLike(info, solution.errorKind(index));
  say(`Line ${index + 1} ${word}, score ${shownScore(line.score)}.${seen === null ? "" : ` ${seen}`}`);
}

// --- the teacher

function allSolutions() {
  return [...kept, ...(solution === null ? [] : [solution]), ...drafts.solutions];
}

function records() {
  return allSolutions().map((one) => one.record(info.label_meaning)).filter((one) => one !== null);
}

function drawCorrections() {
  const found = records();
  const marks = found.reduce((sum, one) => sum + one.overruled.length, 0);
  byId("corrections").hidden = !teacher;
  byId("download").disabled = found.length === 0;
  byId("corrections-count").textContent = found.length
    ? `${count(marks, "mark")} of the model overruled, in ${count(found.length, "solution")}.`
    : "Nothing overruled yet. Change a mark beside a line, and it is kept here.";
}

function download() {
  const text = records().map((record) => `${JSON.stringify(record)}\n`).join("");
  const url = URL.createObjectURL(new Blob([text], { type: "application/jsonl" }));
  const link = document.createElement("a");
  link.href = url;
  link.download = "corrections.jsonl";
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}

function setTeacher(on) {
  teacher = on;
  byId("teacher").ariaChecked = String(on);
  draw();
  drafts.draw();
  changed();
}

// --- what the page says

const say = (text) => { byId("said").textContent = text; };
const tell = (text) => { byId("news").textContent = text; };

function tellReopened(n) {
  tell(n ? `The session was opened again; ${count(n, "line")} marked anew.`
    : "The session was opened again.");
}

function tellConnection() {
  const strip = byId("lost");
  strip.replaceChildren();
  if (!connection.up) {
    tell("");
    const again = document.createElement("button");
    again.type = "button";
    again.className = "quiet";
    again.textContent = "Try now";
    again.addEventListener("click", () => connection.tryNow());
    strip.append("The server does not answer. Your lines are kept on this page; trying again. ", again);
  }
  if (solution !== null) draw();
}

async function cameBack() {
  tell("The server answers again.");
  await learn();
  const now = solution;
  if (pending !== null || now.lines.length === 0) return; // what waits opens the session again
  try {
    const state = await session.check();
    if (now === solution) judge(state);
  } catch (error) {
    if (now === solution) refuse(error, "Your lines could not be marked again");
  }
}

async function learn() {
  for (;;) {
    try {
      info = await ask("GET", "/info");
      break;
    } catch {
      await connection.lost();
    }
  }
  const { notice, name, variant, version, threshold } = info;
  byId("notice").hidden = !notice;
  byId("notice").textContent = notice ? `About these marks: ${notice}.` : "";
  byId("about").textContent =
    `Marked by ${name} (${variant}), prm-edge ${version}. A line passes from a score of ` +
    `${shownScore(threshold)}. What is written here goes to this server and nowhere else.`;
}

// --- keeping what was typed when the tab is loaded again

function changed() {
  if (info === null || solution === null) return;
  drawCorrections();
  const data = {
    problem: solution.problem,
    written: solution.toData(),
    drafts: [...byId("drafts").querySelectorAll("textarea")].map((field) => field.value.split("\n")),
    kept: kept.map((one) => one.toData()),
    teacher,
  };
  try {
    sessionStorage.setItem(STORE, JSON.stringify(data));
  } catch {
    // full or forbidden: then a reload begins anew
  }
}

function stored() {
  try {
    return JSON.parse(sessionStorage.getItem(STORE));
  } catch {
    return null;
  }
}

async function restore(data) {
  kept = data.kept.map(Solution.fromData);
  begin(data.problem, data.drafts);
  const known = PROBLEMS.findIndex((one) => one.problem === data.problem);
  byId("example").value = known < 0 ? "" : known;
  const texts = data.written.lines.map((line) => line.text);
  if (texts.length) {
    const now = solution;
    const state = await session.restore(texts);
    if (now !== solution) return;
    solution.marks = new Map(data.written.marks);
    solution.lines = data.written.lines;
    judge(state);
  }
  if (data.teacher) setTeacher(true);
}

async function start() {
  connection.addEventListener("change", tellConnection);
  await learn();
  connection.addEventListener("change", () => { if (connection.up) cameBack(); });
  fillExamples();
  byId("line-form").addEventListener("submit", (event) => {
    event.preventDefault();
    check();
  });
  byId("take-back").addEventListener("click", () => takeBack(1));
  byId("teacher").addEventListener("click", () => setTeacher(!teacher));
  byId("download").addEventListener("click", download);
  const before = stored();
  try {
    if (before === null) throw new Error("nothing stored");
    await restore(before);
  } catch {
    kept = [];
    byId("example").value = "0";
    begin(PROBLEMS[0].problem, PROBLEMS[0].drafts);
  }
  connection.watch(WATCH_MS);
  document.body.dataset.ready = "yes";
}

start();
