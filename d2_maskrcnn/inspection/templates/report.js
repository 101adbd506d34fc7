"use strict";
(() => {
  // Light, dark, or as the system has it; kept for this visit only, since the file may be opened from anywhere.
  const root = document.documentElement;
  document.querySelector(".theme").addEventListener("click", () => {
    const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = dark ? "light" : "dark";
  });

  const setUpViewer = (viewer) => {
    const canvas = viewer.querySelector(".canvas");
    const svg = canvas.querySelector("svg");
    const width = Number(svg.dataset.width), height = Number(svg.dataset.height);
    let box = { x: 0, y: 0, w: width, h: height };
    if (Math.max(width, height) <= 256) canvas.classList.add("small");

    const show = () => {
      box.w = Math.min(Math.max(box.w, width / 40), width);
      box.h = box.w * height / width;
      box.x = Math.min(Math.max(box.x, 0), width - box.w);
      box.y = Math.min(Math.max(box.y, 0), height - box.h);
      svg.setAttribute("viewBox", `${box.x} ${box.y} ${box.w} ${box.h}`);
      canvas.classList.toggle("zoomed", box.w < width);
    };
    const zoom = (factor, fx = 0.5, fy = 0.5) => {
      const w = Math.min(Math.max(box.w / factor, width / 40), width), h = w * height / width;
      box = { x: box.x + (box.w - w) * fx, y: box.y + (box.h - h) * fy, w, h };
      show();
    };
    const reset = () => { box = { x: 0, y: 0, w: width, h: height }; show(); };
    const share = (event) => {
      const r = svg.getBoundingClientRect();
      return [(event.clientX - r.left) / r.width, (event.clientY - r.top) / r.height];
    };

    viewer.querySelectorAll("[data-zoom]").forEach((button) => button.addEventListener("click", () => {
      const kind = button.dataset.zoom;
      if (kind === "reset") reset(); else zoom(kind === "in" ? 1.5 : 1 / 1.5);
    }));
    canvas.addEventListener("keydown", (event) => {
      const step = 0.15;
      const moves = { ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, -step], ArrowDown: [0, step] };
      if (event.ctrlKey || event.metaKey || event.altKey) return;
      if (event.key === "+" || event.key === "=") zoom(1.5);
      else if (event.key === "-") zoom(1 / 1.5);
      else if (event.key === "0") reset();
      else if (moves[event.key] && box.w < width) {
        box.x += moves[event.key][0] * box.w;
        box.y += moves[event.key][1] * box.h;
        show();
      } else return;
      event.preventDefault();
    });
    svg.addEventListener("wheel", (event) => {
      if (!event.ctrlKey && !event.metaKey) return;
      event.preventDefault();
      zoom(event.deltaY < 0 ? 1.25 : 0.8, ...share(event));
    }, { passive: false });
    svg.addEventListener("dblclick", (event) => zoom(2, ...share(event)));

    let drag = null;
    svg.addEventListener("pointerdown", (event) => {
      if (box.w >= width) return;
      drag = { x: event.clientX, y: event.clientY };
      svg.setPointerCapture(event.pointerId);
    });
    svg.addEventListener("pointermove", (event) => {
      if (!drag) return;
      const scale = box.w / svg.getBoundingClientRect().width;
      box.x -= (event.clientX - drag.x) * scale;
      box.y -= (event.clientY - drag.y) * scale;
      drag = { x: event.clientX, y: event.clientY };
      show();
    });
    ["pointerup", "pointercancel"].forEach((name) => svg.addEventListener(name, () => { drag = null; }));

    viewer.querySelectorAll("input[data-layer]").forEach((input) => input.addEventListener("change", () => {
      svg.querySelector(`g[data-layer="${input.dataset.layer}"]`).style.display = input.checked ? "" : "none";
    }));
    viewer.querySelectorAll("input[data-class]").forEach((input) => input.addEventListener("change", () => {
      svg.querySelectorAll(`g[data-class="${input.dataset.class}"]`).forEach((mark) => {
        mark.style.display = input.checked ? "" : "none";
      });
    }));
  };
  document.querySelectorAll(".viewer").forEach(setUpViewer);

  const dialog = document.querySelector("dialog");
  const large = dialog.querySelector("img");
  document.querySelectorAll(".enlarge").forEach((button) => button.addEventListener("click", () => {
    const image = button.querySelector("img");
    large.src = image.src;
    large.alt = image.alt;
    dialog.querySelector("p").textContent = image.alt;
    dialog.showModal();
  }));
  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });

  const flagged = document.querySelector("#only-flagged");
  if (flagged) flagged.addEventListener("change", () => {
    document.body.classList.toggle("only-flagged", flagged.checked);
    document.querySelectorAll("details.group").forEach((group) => { group.open = flagged.checked && !!group.querySelector(".flag"); });
  });
})();
