package api

import (
	"crypto/sha256"
	_ "embed" // the page
	"encoding/base64"
	"net/http"
	"strconv"
	"strings"
	"sync"
)

// pageText is one file without anything from elsewhere.
//
//go:embed page/index.html
var pageText string

// pageRoute serves the page to a browser. What it shows it asks for as any
// client does, with the key that is typed into it.
func pageRoute() route {
	return route{method: get, path: "/", bare: true, open: true, lenient: true, summary: "The page: state, history and the operator's actions, live", media: "text/html",
		stream: func(_ *Server, w http.ResponseWriter, r *request) error { servePage(w, r.http); return nil }}
}

// pagePolicy lets the page run its own script and style, talk to this server,
// and nothing else.
var pagePolicy = sync.OnceValue(func() string {
	return "default-src 'none'; script-src " + hashOf("script") + "; style-src " + hashOf("style") +
		"; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
})

// hashOf names the text of the page's one element of that kind.
func hashOf(element string) string {
	_, rest, _ := strings.Cut(pageText, "<"+element+">")
	text, _, _ := strings.Cut(rest, "</"+element+">")
	sum := sha256.Sum256([]byte(text))
	return "'sha256-" + base64.StdEncoding.EncodeToString(sum[:]) + "'"
}

func servePage(w http.ResponseWriter, r *http.Request) {
	header := w.Header()
	header.Set("Content-Security-Policy", pagePolicy())
	header.Set("X-Content-Type-Options", "nosniff")
	header.Set("X-Frame-Options", "DENY")
	header.Set("Referrer-Policy", "no-referrer")
	header.Set("Cross-Origin-Opener-Policy", "same-origin")
	header.Set("Cache-Control", "no-cache")
	header.Set("Content-Type", "text/html; charset=utf-8")
	header.Set("Content-Length", strconv.Itoa(len(pageText)))
	if r.Method == http.MethodHead {
		return
	}
	_, _ = w.Write([]byte(pageText))
}
