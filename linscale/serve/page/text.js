// Writing: a prompt goes to the server, and its continuation is shown as it comes, as text and never as HTML.
const NUMBERS = ["temperature", "max_tokens", "top_p", "top_k", "min_p", "repetition_penalty", "seed"];
const ENDS = { stop: "Ended by itself", length: "Ended at the most tokens that were asked for", "": "Stopped" };
let model = null; // what /v1/models says
let running = null; // the AbortController of the text that is being written
let shown = { from: "", prompt: "", written: "", clock: null }; // the text that is on the page

async function describeModel() {
  [model] = (await askJson("v1/models")).data;
  $("model").textContent = model.id;
  document.title = `${model.id} · linscale`;
  $("about").textContent = [
    model.description,
    `tokenizer ${model.tokenizer}`,
    `${model.slots} ${model.slots === 1 ? "text" : "texts"} at once`,
    model.context ? `up to ${tokens(model.context)} a text` : "texts of any length",
  ].join(" · ");
  $("key").hidden = true;
  showMemory(0);
}

// The fields that are filled in, as the API takes them; what it does not take it says.
function sampling() {
  const found = {};
  for (const name of NUMBERS) {
    const field = document.querySelector(`[name=${name}]`);
    if (field.validity.badInput) throw new Error(`${name}: not a number`);
    if (field.value !== "") found[name] = Number(field.value);
  }
  const stops = document.querySelector("[name=stop]").value.split("\n").filter((each) => each);
  if (stops.length) found.stop = stops.map((each) => each.replaceAll("\\n", "\n"));
  return found;
}

async function write() {
  const from = $("from").value, prompt = $("prompt").value, save = $("save-name").value.trim();
  const usage = { include_usage: true, continuous_usage_stats: true };
  if (!model) await start();
  const body = { ...sampling(), stream: true, stream_options: usage };
  if (prompt || !from) body.prompt = prompt;
  if (from) body.state = from;
  if (save) body.save_state = save;
  const before = shown, clock = new Clock(), control = begin({ from, prompt, written: "", clock });
  let ended = "", saved = null;
  try {
    for await (const event of events("v1/completions", body, control.signal)) {
      const [choice] = event.choices;
      clock.note(event.usage);
      saved = event.state || saved;
      ended = choice?.finish_reason || ended;
      if (choice) shown.written += choice.text;
      showSoon();
    }
  } catch (error) {
    if (!control.signal.aborted) throw error;
  } finally {
    if (!clock.made && before.clock) shown = before; // it was refused, or stopped at once
    show();
    end();
    say(clock.made ? `${ENDS[ended]}: ${tokens(clock.made)} written.` : "Nothing new was written.");
  }
  if (saved) await saveIsDone(saved);
}

// Writes on behind the text on the page.
async function goOn() {
  $("from").value = shown.from;
  if ($("from").value !== shown.from) throw new Error(`The state ${shown.from}, which this text goes on from, is gone.`);
  $("prompt").value = shown.prompt + shown.written;
  await write();
}

function begin(text) {
  shown = text;
  running = new AbortController();
  $("caret").hidden = false;
  show();
  $("text").scrollTop = $("text").scrollHeight;
  say("Reading the prompt …");
  const focused = document.activeElement;
  setRunning(true);
  if (focused === $("generate") || focused === $("on")) $("stop").focus();
  return running;
}

function end() {
  running = null;
  $("caret").hidden = true;
  const focused = document.activeElement;
  setRunning(false);
  if (focused === $("stop")) $("generate").focus();
}

function setRunning(on) {
  $("stop").disabled = !on;
  $("generate").disabled = on;
  $("on").disabled = on || !shown.written;
  $("save").querySelector("button").disabled = on;
}

// When tokens came: `made` of them since the request, behind `total - made` of the prompt and the state.
class Clock {
  constructor() {
    Object.assign(this, { began: performance.now(), firstAt: 0, firstMade: 0, lastAt: 0, made: 0, total: 0, seen: false });
  }

  note(usage) {
    if (!usage || usage.completion_tokens === this.made) return;
    this.lastAt = performance.now();
    this.made = usage.completion_tokens;
    this.total = usage.total_tokens;
    if (!this.firstAt) [this.firstAt, this.firstMade] = [this.lastAt, this.made];
  }

  get perSecond() {
    return (this.made - this.firstMade) / ((this.lastAt - this.firstAt) / 1000);
  }
}

let frame = 0;
function showSoon() {
  frame ||= requestAnimationFrame(show);
}

function show() {
  const { prompt, written, clock } = shown;
  cancelAnimationFrame(frame);
  frame = 0;
  const box = $("text"), follow = box.scrollHeight - box.scrollTop - box.clientHeight < 40;
  if ($("given").textContent !== prompt) $("given").textContent = prompt;
  showWritten(written);
  if (follow) box.scrollTop = box.scrollHeight;
  if (running && clock.made && !clock.seen) say("Writing …");
  clock.seen ||= clock.made > 0;
  $("first").textContent = clock.made ? duration(clock.firstAt - clock.began) : "–";
  $("rate").textContent = clock.made > clock.firstMade ? rate(clock.perSecond) : "–";
  $("tokens").textContent = clock.made ? COUNT.format(clock.total) : "–";
  showMemory(clock.total);
}

// Adds what is new; a frame does not draw the whole text again.
function showWritten(written) {
  const node = $("written").firstChild || $("written").appendChild(new Text());
  if (written.startsWith(node.data)) node.appendData(written.slice(node.length));
  else node.data = written;
}

// What the state takes at a length, beside keys and values of the same width and depth.
function showMemory(length) {
  const each = model.state_bytes_per_token, fixed = model.state_bytes - each * (model.context || 0);
  const own = fixed + each * length, softmax = model.softmax_bytes_per_token * length;
  $("state-size").textContent = size(own);
  $("memory").hidden = !length;
  $("softmax").hidden = each === model.softmax_bytes_per_token;
  const most = Math.max(own, $("softmax").hidden ? 0 : softmax);
  showBar("own", own / most, each ? `${size(own)}, + ${size(each)} a token` : `${size(own)}, constant`);
  showBar("softmax", softmax / most, `${size(softmax)}, + ${size(model.softmax_bytes_per_token)} a token`);
}

function showBar(id, share, text) {
  const bar = $(id);
  bar.querySelector("i").style.width = `${100 * share}%`;
  bar.querySelector(".size").textContent = text;
}

// Saves the state behind the text on the page, which the server reads again; before anything is written, the prompt.
async function saveShown() {
  const { from, prompt, written } = shown.prompt + shown.written ? shown : { from: $("from").value, prompt: $("prompt").value, written: "" };
  if (!(prompt + written)) throw new Error("There is no text yet whose state could be saved.");
  const body = { name: $("save-name").value.trim(), text: prompt + written };
  await saveIsDone(await askJson("v1/states", { body: from ? { ...body, from } : body }));
}

async function saveIsDone(state) {
  $("save-name").value = "";
  await listStates();
  say(`Saved as ${state.name}: ${tokens(state.tokens)} in ${size(state.bytes)}.`);
}

$("write").addEventListener("submit", (event) => {
  event.preventDefault();
  if (!running) attempt(write);
});
$("prompt").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) $("write").requestSubmit();
});
$("on").addEventListener("click", () => attempt(goOn));
$("stop").addEventListener("click", () => running?.abort());
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && !$("ask").open) running?.abort();
});
$("save").addEventListener("submit", (event) => {
  event.preventDefault();
  if (!running) attempt(saveShown);
});
