// What keeps a page current: one event stream for whatever has `data-live`, closed while nobody looks, and a look every
// few seconds where streams do not come through. And moments, told as one would say them.

const POLL_MS = 5000;
let source = null, poll = null, followed = null;

const live = () => document.querySelector("[data-live]");

function follow() {
  leave();
  if (document.hidden || !live()) return;
  followed = live().dataset.live;
  source = new EventSource(followed);
  source.onopen = () => { clearInterval(poll); poll = null; };
  source.onerror = () => { poll ??= setInterval(look, POLL_MS); };
  source.addEventListener("page", event => show(event.data));
}

function leave() {
  source?.close();
  clearInterval(poll);
  source = poll = null;
}

async function look() {
  if (source?.readyState === EventSource.CLOSED) follow();
  const response = await fetch(live().dataset.live.replace("/live/", "/"), { headers: { "HX-Request": "true" } }).catch(() => null);
  if (response?.status === 401) return location.reload();
  if (!response?.ok) return;
  const page = new DOMParser().parseFromString(await response.text(), "text/html");
  const found = page.querySelector("[data-live]");
  if (found) show(found.innerHTML);
}

function show(html) {
  htmx.swap({ text: html, target: live(), swap: "innerMorph", sourceElement: live() });
}

const STEPS = [["day", 86400], ["hour", 3600], ["minute", 60], ["second", 1]];
const spoken = new Intl.RelativeTimeFormat(document.documentElement.lang, { style: "short", numeric: "always" });

function tellMoments() {
  for (const one of document.querySelectorAll("time[data-ago]")) {
    const seconds = Math.round((new Date(one.dateTime) - Date.now()) / 1000);
    const [unit, length] = STEPS.find(([, length]) => Math.abs(seconds) >= length) ?? STEPS[3];
    const text = spoken.format(Math.min(0, Math.trunc(seconds / length)), unit);
    if (one.textContent !== text) one.textContent = text;
  }
}

// What was submitted appears beside its form, and is followed from then on.
function afterSwap() {
  tellMoments();
  if (live() && live().dataset.live !== followed) follow();
}

// Forms that only look leave out of the address what is not chosen.
function leaveOutEmpty(event) {
  if (event.target.method !== "get") return;
  for (const [name, value] of [...event.formData]) if (!value) event.formData.delete(name);
}

async function copy(event) {
  const button = event.target.closest("[data-copy]");
  if (!button) return;
  const text = document.getElementById(button.dataset.copy);
  getSelection().selectAllChildren(text);  // to be copied by hand where the browser does not let us
  await navigator.clipboard?.writeText(text.textContent);
  if (navigator.clipboard) button.textContent = button.dataset.copied;
}

document.addEventListener("visibilitychange", follow);
document.addEventListener("htmx:after:swap", afterSwap);
document.addEventListener("formdata", leaveOutEmpty);
document.addEventListener("click", copy);
window.addEventListener("pagehide", leave);
window.addEventListener("pageshow", event => { if (event.persisted) follow(); });  // by the way back
setInterval(tellMoments, 1000);
htmx.config.morphIgnore.push("open");  // what somebody has unfolded stays so
tellMoments();
follow();
