// What the page asks of the server, and how numbers are shown.
const $ = (id) => document.getElementById(id);
const KEY = "linscale-key"; // where this tab keeps the key that the server wants
const COUNT = new Intl.NumberFormat("en");

// The answer to a request. Throws an Error with the server's reason where it refuses.
async function ask(path, { body, method = body ? "POST" : "GET", signal } = {}) {
  const headers = body ? { "Content-Type": "application/json" } : {};
  const key = sessionStorage.getItem(KEY);
  if (key) headers.Authorization = `Bearer ${key}`;
  let answer;
  try {
    answer = await fetch(path, { method, headers, signal, body: body && JSON.stringify(body) });
  } catch (error) {
    throw signal?.aborted ? error : new Error("The server does not answer. Does it still run?");
  }
  if (answer.ok) return answer;
  const problem = await answer.json().catch(() => null);
  const error = new Error(problem?.error?.message || `The server answered ${answer.status}.`);
  if (answer.status === 401) {
    error.quiet = !key; // the form for it says enough
    wantKey();
  }
  throw error;
}

async function askJson(path, options) {
  return (await ask(path, options)).json();
}

// The events of an answer that comes bit by bit, up to its [DONE].
async function* events(path, body, signal) {
  const reader = (await ask(path, { body, signal })).body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read().catch((error) => {
      if (signal.aborted) throw error;
      return { done: true };
    });
    if (done) throw new Error("The connection broke before the end.");
    const parts = (rest + value).split("\n\n");
    rest = parts.pop();
    for (const data of parts.map((part) => part.replace(/^data: /, ""))) {
      if (data === "[DONE]") return;
      const event = JSON.parse(data);
      if (event.error) throw new Error(event.error.message);
      yield event;
    }
  }
}

// Does something that the user asked for; what goes wrong is shown. Whether it went well.
async function attempt(work) {
  $("error").hidden = true;
  try {
    await work();
    return true;
  } catch (error) {
    if (error.quiet) return false;
    $("error").textContent = error.message;
    $("error").hidden = false;
    $("error").scrollIntoView({ block: "nearest" });
    return false;
  }
}

function wantKey() {
  $("about").textContent = "What it serves it tells those who have a key.";
  $("key-value").select();
  $("key").hidden = false;
  $("key-value").focus();
}

function say(text) {
  $("status").textContent = text;
}

// Bytes in decimal units, three digits: 1234567 -> 1.23 MB.
function size(bytes) {
  const units = ["B", "kB", "MB", "GB", "TB"];
  let power = 0;
  for (; bytes >= 999.5 && power < units.length - 1; power++) bytes /= 1000;
  return `${bytes >= 999.5 ? Math.round(bytes) : Number(bytes.toPrecision(3))} ${units[power]}`;
}

function duration(ms) {
  if (ms < 1000) return `${Math.round(ms)} ms`;
  if (ms < 60000) return `${(ms / 1000).toFixed(ms < 10000 ? 2 : 1)} s`;
  const seconds = Math.round(ms / 1000);
  return `${Math.floor(seconds / 60)} min ${seconds % 60} s`;
}

function rate(perSecond) {
  return COUNT.format(perSecond < 99.5 ? Math.round(perSecond * 10) / 10 : Math.round(perSecond));
}

function tokens(count) {
  return `${COUNT.format(count)} ${count === 1 ? "token" : "tokens"}`;
}
