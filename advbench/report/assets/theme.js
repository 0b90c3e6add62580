"use strict";
// Before the page is drawn, so that it does not flash. Storage may be forbidden, as for files opened from a disk.
try {
  const kept = localStorage.getItem("advbench-theme");
  if (kept === "light" || kept === "dark") document.documentElement.dataset.theme = kept;
} catch {
  /* the screen's own setting holds */
}
document.documentElement.classList.add("scripted");
