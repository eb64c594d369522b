package kbs

import (
	"errors"
	"net/http"
)

// errorTypes is what the types of errors begin with. It is a name, and nothing is there.
const errorTypes = "https://github.com/confidential-containers/kbs/errors/"

// information is how the protocol tells of errors.
type information struct {
	Type   string `json:"type"`
	Detail string `json:"detail"`
}

// failure is an error with how it is told.
type failure struct {
	status int
	kind   string
	err    error
}

func (f *failure) Error() string { return f.err.Error() }
func (f *failure) Unwrap() error { return f.err }

func (f *failure) information() *information {
	return &information{errorTypes + f.kind, f.err.Error()}
}

func problem(status int, kind string, err error) error { return &failure{status, kind, err} }

// as is problem for errors that have not said more already.
func as(status int, kind string, err error) error {
	if errors.As(err, new(*failure)) {
		return err
	}
	return problem(status, kind, err)
}

func asProblem(err error) *failure {
	var f *failure
	if errors.As(err, &f) {
		return f
	}
	return &failure{http.StatusInternalServerError, "AttestationError", err}
}
