// The pictures of a gallery, large, one after the other: by click, or by Enter, the arrows and Escape.

const box = document.getElementById("lightbox");
const links = () => [...document.querySelectorAll("[data-lightbox] a")];
let shown = null;  // the address of the picture that is shown: the list may change behind it

function open(link) {
  shown = link.href;
  const small = link.querySelector("img"), large = box.querySelector("img");
  large.src = link.dataset.full;
  large.alt = box.querySelector(".prompt").textContent = small.alt;
  box.querySelector("[data-model]").textContent = link.dataset.model;
  box.querySelector("[data-seed]").textContent = link.dataset.seed;
  box.querySelector("[data-compare]").href = link.href;
  if (!box.open) box.showModal();
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
box.addEventListener("click", event => {
  const by = event.target.dataset.step;
  if (by) step(Number(by));
});
box.addEventListener("keydown", event => {
  const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  if (by) { event.preventDefault(); step(by); }
});
box.addEventListener("close", () => links().find(link => link.href === shown)?.focus());
