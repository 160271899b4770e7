/* Quizzes and pictures. No network, nothing stored; without this script answers are folded and pictures are pictures. */
"use strict";

/* Search results show excerpts by fetching pages, which browsers refuse for pages opened as files. */
if (location.protocol === "file:") {
  DOCUMENTATION_OPTIONS.SHOW_SEARCH_SUMMARY = false;
}

function quiz(form) {
  const verdict = form.querySelector(".quiz-verdict");
  const button = form.querySelector("button");
  button.hidden = false;
  button.addEventListener("click", () => {
    const chosen = form.querySelector("input:checked");
    if (!chosen) {
      verdict.textContent = "Choose an answer first.";
      return;
    }
    const reason = chosen.closest("label").nextElementSibling;
    const word = document.createElement("strong");
    word.textContent = reason.dataset.right === "true" ? "✓ Right." : "✗ Not this one.";
    const why = document.createElement("span");
    why.innerHTML = reason.innerHTML;
    verdict.replaceChildren(word, why);
  });
  form.addEventListener("change", () => verdict.replaceChildren()); // a new choice is not judged yet
}

function picture(image, dialog) {
  const button = document.createElement("button");
  button.type = "button";
  button.className = "enlarge";
  button.setAttribute("aria-label", `Enlarge the figure: ${image.alt}`);
  image.replaceWith(button);
  button.append(image);
  button.addEventListener("click", () => {
    const large = dialog.querySelector("img");
    large.src = image.src;
    large.alt = image.alt;
    // On a phone the picture is as wide as it was drawn, and scrolls; a large screen shows all of it.
    large.style.width = `${image.naturalWidth}px`;
    dialog.showModal();
  });
}

/* Who comes from the search wants the place, not the page's top. */
function showWordsFound() {
  SphinxHighlight.highlightSearchWords(); // Sphinx doesn't on pages that have the theme's search; it takes a moment
  setTimeout(() => {
    const found = document.querySelector("article :is(p, li, td) .highlighted");
    if (!found || location.hash) return;
    found.closest("details")?.setAttribute("open", "");
    found.scrollIntoView({ block: "center" });
  }, 100);
}

document.addEventListener("DOMContentLoaded", () => {
  for (const summary of document.querySelectorAll("nav summary")) { // the theme draws arrows without a name
    summary.setAttribute("aria-label", `Pages below ${summary.closest("li").querySelector("a").textContent.trim()}`);
  }
  // Names that say something else than what is written there: whoever speaks to the computer says what they see.
  for (const named of document.querySelectorAll(".search-button-field, details.hide > summary")) {
    named.removeAttribute("aria-label");
  }
  for (const header of document.querySelectorAll("th.head")) { // the corner of a table is no header
    if (!header.textContent.trim()) header.replaceWith(document.createElement("td"));
  }
  const logo = document.querySelector(".sidebar-primary-item:has(.navbar-brand)"); // beside all landmarks otherwise
  logo?.setAttribute("role", "navigation");
  logo?.setAttribute("aria-label", "Start");
  document.querySelectorAll("form.quiz").forEach(quiz);
  if (!document.querySelector("#search-results")) showWordsFound();
  const images = [...document.querySelectorAll("article img")].filter((image) => !image.closest("a, .sd-card"));
  if (!images.length) return;
  const dialog = document.createElement("dialog");
  dialog.className = "picture";
  dialog.setAttribute("aria-label", "Figure at full size");
  dialog.innerHTML = '<button type="button">Close</button><img alt="">';
  dialog.querySelector("button").addEventListener("click", () => dialog.close());
  document.body.append(dialog);
  images.forEach((image) => picture(image, dialog));
});
