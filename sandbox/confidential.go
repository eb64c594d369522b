package sandbox

import (
	"context"

	"manis/api/confidential"
)

// The requests below are those of the guard of a confidential machine's agent, see
// api/confidential/confidential.proto. The sandbox carries what others have made.

func (s *Sandbox) guard() confidential.ConfidentialService {
	return confidential.NewConfidentialClient(s.current.Load().link.Control())
}

// Admit hands the signed manifest over.
func (s *Sandbox) Admit(ctx context.Context, envelope, owner []byte) error {
	_, err := call(ctx, s, &confidential.AdmitRequest{Envelope: envelope, Owner: owner}, s.guard().Admit)
	return err
}

// Attest returns evidence of the machine for a nonce.
func (s *Sandbox) Attest(ctx context.Context, nonce []byte) ([]byte, error) {
	resp, err := call(ctx, s, &confidential.AttestRequest{Nonce: nonce}, s.guard().Attest)
	if err != nil {
		return nil, err
	}
	return resp.Evidence, nil
}

// Release hands over what a broker has answered to the last evidence.
func (s *Sandbox) Release(ctx context.Context, release []byte) error {
	_, err := call(ctx, s, &confidential.ReleaseRequest{Release: release}, s.guard().Release)
	return err
}

// Events returns entries of the machine's audit log from a number on; none when there are no more.
func (s *Sandbox) Events(ctx context.Context, from uint32) ([][]byte, error) {
	resp, err := call(ctx, s, &confidential.EventsRequest{From: from}, s.guard().Events)
	if err != nil {
		return nil, err
	}
	return resp.Events, nil
}
