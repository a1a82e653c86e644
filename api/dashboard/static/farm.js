// Keeps a page current: an event stream for the element with `data-live`, closed while the page is hidden, and polling
// where streams do not get through. Shows moments as "3 minutes ago" or "in 3 minutes".

const POLL_MS = 5000;
let stream = null, timer = null, streamUrl = null;

const liveElement = () => document.querySelector("[data-live]");

function connect() {
  disconnect();
  if (document.hidden || !liveElement()) return;
  streamUrl = liveElement().dataset.live;
  stream = new EventSource(streamUrl);
  stream.onopen = () => { clearInterval(timer); timer = null; };
  stream.onerror = () => { timer ??= setInterval(poll, POLL_MS); };
  stream.addEventListener("page", event => update(event.data));
}

function disconnect() {
  stream?.close();
  clearInterval(timer);
  stream = timer = null;
}

async function poll() {
  if (stream?.readyState === EventSource.CLOSED) connect();
  const response = await fetch(liveElement().dataset.live.replace("/live/", "/"), { headers: { "HX-Request": "true" } }).catch(() => null);
  if (response?.status === 401) return location.reload();
  if (!response?.ok) return;
  const page = new DOMParser().parseFromString(await response.text(), "text/html");
  const found = page.querySelector("[data-live]");
  if (found) update(found.innerHTML);
}

function update(html) {
  htmx.swap({ text: html, target: liveElement(), swap: "innerMorph", sourceElement: liveElement() });
}

const UNITS = [["day", 86400], ["hour", 3600], ["minute", 60], ["second", 1]];
const relativeTime = new Intl.RelativeTimeFormat(document.documentElement.lang, { style: "short", numeric: "always" });

function updateMoments() {
  for (const element of document.querySelectorAll("time[data-ago]")) {
    const seconds = Math.round((new Date(element.dateTime) - Date.now()) / 1000);
    const [unit, length] = UNITS.find(([, length]) => Math.abs(seconds) >= length) ?? UNITS[3];
    const steps = Math.trunc(seconds / length);
    const text = relativeTime.format("ahead" in element.dataset ? Math.max(0, steps) : Math.min(0, steps), unit);
    if (element.textContent !== text) element.textContent = text;
  }
}

// A submitted job appears beside its form, with a stream of its own.
function afterSwap() {
  updateMoments();
  if (liveElement() && liveElement().dataset.live !== streamUrl) connect();
}

// A search form leaves its empty fields out of the URL.
function dropEmptyFields(event) {
  if (event.target.method !== "get") return;
  for (const [name, value] of [...event.formData]) if (!value) event.formData.delete(name);
}

async function copy(event) {
  const button = event.target.closest("[data-copy]");
  if (!button) return;
  const text = document.getElementById(button.dataset.copy);
  getSelection().selectAllChildren(text);  // for Ctrl-C, where the browser forbids writing to the clipboard
  await navigator.clipboard?.writeText(text.textContent);
  if (navigator.clipboard) button.textContent = button.dataset.copied;
}

document.addEventListener("visibilitychange", connect);
document.addEventListener("htmx:after:swap", afterSwap);
document.addEventListener("formdata", dropEmptyFields);
document.addEventListener("click", copy);
window.addEventListener("pagehide", disconnect);
window.addEventListener("pageshow", event => { if (event.persisted) connect(); });  // restored by the back button
setInterval(updateMoments, 1000);
htmx.config.morphIgnore.push("open");  // an update leaves unfolded <details> open
updateMoments();
connect();
