// Saved states: listed, gone on from, forked, deleted, and made of a long text. Then the page begins.
const WHEN = { month: "short", day: "numeric", hour: "numeric", minute: "2-digit" };
let reading = null; // the AbortController of the text that is being read

async function listStates() {
  const states = (await askJson("v1/states")).data;
  $("list").replaceChildren(...states.map(itemOf));
  $("none").hidden = states.length > 0;
  for (const select of [$("from"), $("read-from")]) {
    const chosen = select.value;
    const options = states.map(({ name, tokens: length }) => new Option(`${name} (${tokens(length)})`, name));
    select.replaceChildren(select.options[0], ...options);
    select.value = states.some(({ name }) => name === chosen) ? chosen : "";
  }
}

function itemOf(state) {
  const item = document.createElement("li"), name = document.createElement("strong");
  const facts = document.createElement("p"), buttons = document.createElement("div");
  name.textContent = state.name;
  facts.className = "hint";
  const made = new Date(1000 * state.created).toLocaleString("en", WHEN);
  facts.textContent = `${tokens(state.tokens)} · ${size(state.bytes)} · ${made}`;
  buttons.className = "line";
  buttons.append(
    buttonOf("Go on from this", state.name, () => goOnFrom(state.name)),
    buttonOf("Fork", state.name, () => fork(state.name)),
    buttonOf("Delete", state.name, () => remove(state.name)),
  );
  item.append(name, facts, buttons);
  return item;
}

function buttonOf(label, name, work) {
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = label;
  button.setAttribute("aria-label", `${label}: ${name}`);
  button.addEventListener("click", () => attempt(work));
  return button;
}

// The next text is read behind this state, and the box is free for it.
function goOnFrom(name) {
  $("from").value = name;
  if ($("prompt").value === shown.prompt || $("prompt").value === shown.prompt + shown.written) $("prompt").value = "";
  $("prompt").focus();
  $("prompt").scrollIntoView({ block: "nearest" });
}

async function fork(name) {
  const copy = await question(`Fork ${name}`, "Fork", `${name}-2`);
  if (copy === null) return;
  await askJson(`v1/states/${encodeURIComponent(name)}/fork`, { body: { name: copy.trim() } });
  await listStates();
  say(`${name} is copied to ${copy.trim()}.`);
}

async function remove(name) {
  if ((await question(`Delete ${name}?`, "Delete")) === null) return;
  await ask(`v1/states/${encodeURIComponent(name)}`, { method: "DELETE" });
  await listStates();
  say(`${name} is deleted.`);
  $("refresh").focus();
}

// Asks for a name, or where none is proposed for a yes; null for a no.
function question(title, yes, proposal) {
  const dialog = $("ask");
  $("ask-title").textContent = title;
  $("ask-yes").textContent = yes;
  $("ask-field").hidden = proposal === undefined;
  $("ask-name").value = proposal ?? "";
  dialog.returnValue = "";
  dialog.showModal();
  if (proposal !== undefined) $("ask-name").select();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "yes" ? $("ask-name").value : null), { once: true });
  });
}

async function contentOf(file) {
  try {
    return new TextDecoder("utf-8", { fatal: true }).decode(await file.arrayBuffer());
  } catch (error) {
    throw new Error(`${file.name}: cannot be read as UTF-8; save it as such.`);
  }
}

async function read() {
  const [file] = $("read-file").files, from = $("read-from").value;
  const text = file ? await contentOf(file) : $("read-text").value;
  const body = { name: $("read-name").value.trim(), text, stream: true };
  if (!body.text) throw new Error("There is no text to read: choose a file, or type one.");
  if (from) body.from = from;
  reading = new AbortController();
  setReading(true);
  const began = performance.now();
  let state = null;
  $("read-status").textContent = "Sending the text …";
  try {
    for await (const event of events("v1/states", body, reading.signal)) {
      if (event.object === "state") state = event;
      else showProgress(event, (performance.now() - began) / 1000);
    }
    await listStates();
    $("read-status").textContent = `Read as ${state.name}: ${tokens(state.tokens)} in ${duration(performance.now() - began)}.`;
    for (const id of ["read-name", "read-text", "read-file"]) $(id).value = "";
  } catch (error) {
    $("read-status").textContent = "Nothing was saved.";
    if (!reading.signal.aborted) throw error;
  } finally {
    reading = null;
    setReading(false);
  }
}

function setReading(on) {
  $("read-bar").hidden = !on;
  $("read-bar").removeAttribute("value");
  $("read").querySelector("[type=submit]").disabled = on;
  $("read-stop").disabled = !on;
}

function showProgress(event, seconds) {
  $("read-bar").max = event.total;
  $("read-bar").value = event.read;
  const perSecond = event.read / seconds, left = (event.total - event.read) / perSecond;
  $("read-status").textContent =
    `${COUNT.format(event.read)} of ${tokens(event.total)}, ${rate(perSecond)} a second, ${duration(1000 * left)} left`;
}

async function start() {
  await describeModel();
  await listStates();
}

$("refresh").addEventListener("click", () => attempt(listStates));
$("read").addEventListener("submit", (event) => {
  event.preventDefault();
  if (!reading) attempt(read);
});
$("read-stop").addEventListener("click", () => reading?.abort());
$("key").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem(KEY, $("key-value").value.trim());
  attempt(start).then((done) => done && $("prompt").focus());
});
if (matchMedia("(max-width: 52rem)").matches) $("sampling").open = false;
attempt(start);
