// Shows the images of a list large, one at a time: by click, or by Enter, the arrow keys and Escape.

const lightbox = document.getElementById("lightbox");
const links = () => [...document.querySelectorAll("[data-lightbox] a")];
let shown = null;  // the URL of the open image: the list may change while it is open

function open(link) {
  shown = link.href;
  const thumbnail = link.querySelector("img"), large = lightbox.querySelector("img");
  large.src = link.dataset.full;
  large.alt = lightbox.querySelector(".prompt").textContent = thumbnail.alt;
  lightbox.querySelector("[data-model]").textContent = link.dataset.model;
  lightbox.querySelector("[data-seed]").textContent = link.dataset.seed;
  lightbox.querySelector("[data-compare]").href = link.href;
  if (!lightbox.open) lightbox.showModal();
}

function step(by) {
  const all = links(), next = all[all.findIndex(link => link.href === shown) + by];
  if (next) open(next);
}

document.addEventListener("click", event => {
  const link = event.target.closest("[data-lightbox] a");
  if (!link || event.ctrlKey || event.metaKey || event.shiftKey) return;
  event.preventDefault();
  open(link);
});
lightbox.addEventListener("click", event => {
  const by = event.target.dataset.step;
  if (by) step(Number(by));
});
lightbox.addEventListener("keydown", event => {
  const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  if (by) { event.preventDefault(); step(by); }
});
lightbox.addEventListener("close", () => links().find(link => link.href === shown)?.focus());
