// One solution as it is typed, in a live session of the server: each line runs its own tokens only.
//
// The lines are kept here too. When the session is gone, because the server was restarted or nobody
// typed for long, another is opened with the same lines, so nothing is lost and nothing is doubled.

import { Lost, Refused, ask, sleep } from "./api.js";

const GONE = ["no_session", "conflict"];

// The student went on to another problem meanwhile.
export class Ended extends Error {}

export class LiveSession extends EventTarget {
  #id = null;
  #ended = false;
  #abandoned = [];
  #turn = Promise.resolve();

  constructor(problem, connection) {
    super();
    this.problem = problem;
    this.connection = connection;
    this.lines = [];
  }

  // Take a line; the answer is the state of the whole session.
  add(line) {
    return this.#inTurn(() =>
      this.#settle([...this.lines, line], (id) =>
        ask("POST", `/v1/sessions/${id}/steps`, { steps: [line], after: this.lines.length })));
  }

  // Take back the last lines.
  takeBack(n) {
    return this.#inTurn(() =>
      this.#settle(this.lines.slice(0, this.lines.length - n), (id) =>
        ask("POST", `/v1/sessions/${id}/undo`, { n, after: this.lines.length })));
  }

  // Open it again with lines that were typed before.
  restore(lines) {
    return this.#inTurn(() => {
      this.#drop();
      return this.#settle(lines, (id) => ask("GET", `/v1/sessions/${id}`));
    });
  }

  // Whether it is still there; if not, open it again.
  check() {
    return this.#inTurn(() => this.#settle(this.lines, (id) => ask("GET", `/v1/sessions/${id}`)));
  }

  end() {
    this.#ended = true;
    this.#drop();
    this.#forget();
  }

  #inTurn(what) {
    const result = this.#turn.then(what);
    this.#turn = result.catch(() => {});
    return result;
  }

  async #settle(lines, step) {
    for (;;) {
      if (this.#ended) throw new Ended();
      const opened = this.#id !== null;
      try {
        const state = opened ? await step(this.#id) : await this.#open(lines);
        this.lines = lines;
        return state;
      } catch (error) {
        if (error instanceof Lost) {
          this.#drop();
          await this.connection.lost();
        } else if (error instanceof Refused && opened && GONE.includes(error.code)) {
          this.#drop();
        } else if (error instanceof Refused && error.retryAfterS !== null) {
          this.#tell("busy", error.retryAfterS);
          await sleep(1000 * error.retryAfterS);
        } else {
          throw error;
        }
      }
    }
  }

  async #open(lines) {
    const state = await ask("POST", "/v1/sessions", { problem: this.problem, steps: lines });
    const again = this.#abandoned.length > 0;
    this.#id = state.id;
    this.#forget();
    if (again) this.#tell("reopened", lines.length);
    return state;
  }

  #drop() {
    if (this.#id !== null) this.#abandoned.push(this.#id);
    this.#id = null;
  }

  #forget() {
    for (const id of this.#abandoned) ask("DELETE", `/v1/sessions/${id}`).catch(() => {});
    this.#abandoned = [];
  }

  #tell(type, detail) {
    this.dispatchEvent(new CustomEvent(type, { detail }));
  }
}
