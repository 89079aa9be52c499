// Calls to the server that the page came from: an answer, a refusal with its reason, or nothing.

const TIMEOUT_MS = 70_000;

export const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

// The server understood and said no. `retryAfterS`: when it may work, where waiting helps.
export class Refused extends Error {
  constructor(code, message, retryAfterS) {
    super(message);
    this.code = code;
    this.retryAfterS = retryAfterS;
  }
}

// Nobody answered, or not in full, or the server that scores is not ready.
export class Lost extends Error {}

export async function ask(method, path, body) {
  const options = { method, cache: "no-store", signal: AbortSignal.timeout(TIMEOUT_MS) };
  if (method === "POST") {
    options.headers = { "Content-Type": "application/json" };
    options.body = JSON.stringify(body);
  }
  let answer, data;
  try {
    answer = await fetch(path, options);
    data = answer.status === 204 ? null : await answer.json();
  } catch {
    throw new Lost("the server does not answer");
  }
  if (answer.ok) return data;
  if (answer.status === 503) throw new Lost("the server is not ready");
  const told = data?.error ?? { code: "failed", message: `the server answered ${answer.status}` };
  const after = Number(answer.headers.get("Retry-After"));
  const retryAfterS = answer.status === 429 ? Math.max(1, after || 1) : null;
  throw new Refused(told.code, told.message, retryAfterS);
}

// Knows whether the server answers. `lost()` resolves when it does again.
export class Connection extends EventTarget {
  up = true;
  #back = null;
  #hurry = () => {};

  lost() {
    if (this.#back === null) {
      this.#set(false);
      this.#back = this.#wait();
    }
    return this.#back;
  }

  // Do not wait for the next try.
  tryNow() {
    this.#hurry();
  }

  // Notice a server that goes away while nobody types.
  watch(everyMs) {
    setInterval(async () => {
      if (!this.up || document.hidden) return;
      await ask("GET", "/health").catch(() => this.lost());
    }, everyMs);
  }

  async #wait() {
    for (let pauseMs = 400; ; pauseMs = Math.min(pauseMs * 1.5, 4000)) {
      await Promise.race([sleep(pauseMs), new Promise((resolve) => { this.#hurry = resolve; })]);
      const answers = await ask("GET", "/health").then(() => true, () => false);
      if (answers) break;
    }
    this.#back = null;
    this.#set(true);
  }

  #set(up) {
    this.up = up;
    this.dispatchEvent(new Event("change"));
  }
}

// Ask until there is an answer or a refusal: waits for a server that is gone or busy.
export async function askPatiently(connection, method, path, body, onBusy = () => {}) {
  for (;;) {
    try {
      return await ask(method, path, body);
    } catch (error) {
      if (error instanceof Lost) {
        await connection.lost();
      } else if (error.retryAfterS) {
        onBusy(error.retryAfterS);
        await sleep(1000 * error.retryAfterS);
      } else {
        throw error;
      }
    }
  }
}
